"""The text of a PDF, page by page. Only for the reading process: see aside.py."""

from __future__ import annotations

import io
import logging

import pypdf
from pypdf.errors import DependencyError, FileNotDecryptedError, LimitReachedError, PyPdfError

from perilune.chat.documents.limits import MAX_PAGES, Sink, over, unreadable
from perilune.errors import UnsupportedInput

ENCRYPTED = "is a PDF that is encrypted"
DECRYPT = "save it without a password and send that"


def pdf_text(data: bytes) -> tuple[str, str]:
    """(title, text). Raises UnsupportedInput, saying what to do, for one that cannot be read."""
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells of every oddity of every file
    try:
        return _text(data)
    except (FileNotDecryptedError, DependencyError) as error:
        raise unreadable(ENCRYPTED, DECRYPT) from error
    except LimitReachedError as error:
        raise over("a PDF may unpack to") from error
    except UnsupportedInput:
        raise
    except (PyPdfError, RecursionError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        # A damaged file breaks a parser in any of these ways.
        raise unreadable(
            "is a PDF that cannot be read: it is damaged or cut off",
            "open it in a PDF viewer and save it anew",
        ) from error


def _text(data: bytes) -> tuple[str, str]:
    reader = pypdf.PdfReader(io.BytesIO(data))
    # Many PDFs are encrypted with an empty password, only to forbid editing.
    if reader.is_encrypted and not reader.decrypt(""):
        raise unreadable(ENCRYPTED, DECRYPT)
    if len(reader.pages) > MAX_PAGES:
        raise over(f"{MAX_PAGES} pages")
    sink = Sink()
    for page in reader.pages:
        sink.add(page.extract_text().strip())
        sink.add("\n\n")
    text = sink.text()
    if not text:
        raise unreadable(
            "is a PDF without text: its pages are pictures",
            "run text recognition (OCR) over it and send that",
        )
    return _title(reader), text


def _title(reader: pypdf.PdfReader) -> str:
    title = reader.metadata.title if reader.metadata else None
    return " ".join(title.split()) if isinstance(title, str) else ""
