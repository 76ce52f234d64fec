"""What an uploaded file is: images and videos by their first bytes, documents by whether they are text."""

from __future__ import annotations

import codecs
from typing import Literal

from perilune.errors import InputError, UnsupportedInput

Purpose = Literal["file-extract", "image", "video"]

IMAGES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))
VIDEOS = (
    (b"\x1aE\xdf\xa3", "video/webm"),
    (b"FLV\x01", "video/x-flv"),
    (b"\x00\x00\x01\xba", "video/mpeg"),
    (b"\x00\x00\x01\xb3", "video/mpeg"),
    (b"0&\xb2u\x8ef\xcf\x11", "video/x-ms-wmv"),
)
BOXED = {b"qt  ": "video/quicktime", b"3gp": "video/3gpp"}
"""Brands of files that are made of boxes; the others are mp4."""
DOCUMENTS = (
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "office, EPUB and ZIP"),
    (b"\xd0\xcf\x11\xe0", "old office"),
    (b"{\\rtf", "RTF"),
)
"""Formats whose text this build does not take out."""
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def media_type(purpose: Purpose, data: bytes) -> str:
    """The content type of a file that is fit for its purpose.

    Raises InputError or UnsupportedInput, naming what would be.
    """
    match purpose:
        case "file-extract":
            text_of(data)
            return "text/plain; charset=utf-8"
        case "image":
            found, known = _image(data), "PNG, JPEG, WebP or GIF"
        case "video":
            found, known = _video(data), "mp4, mov, 3gp, webm, mkv, avi, flv, mpeg or wmv"
    if found is None:
        raise InputError(f"is no {purpose} of a known format", field="file", mend=f"send {known}")
    return found


def text_of(data: bytes) -> str:
    """The text of a document: of source code, Markdown, JSON, CSV and whatever else is text, as it stands.

    Raises UnsupportedInput for what is none.
    """
    for head, name in DOCUMENTS:
        if data.startswith(head):
            raise UnsupportedInput(
                f"text is not taken out of {name} files", field="file", mend="save it as text and send that"
            )
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UnsupportedInput(
            "is not text in UTF-8, or in UTF-16 with a byte order mark",
            field="file",
            mend="save it so and send it again",
        )
    return text


def _image(data: bytes) -> str | None:
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for head, kind in IMAGES if data.startswith(head)), None)


def _video(data: bytes) -> str | None:
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "video/x-msvideo"
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return next((kind for start, kind in BOXED.items() if brand.startswith(start)), "video/mp4")
    return next((kind for head, kind in VIDEOS if data.startswith(head)), None)
