"""What an uploaded file is, by its first bytes; and the text of documents."""

from __future__ import annotations

import asyncio
from typing import Literal

from perilune.chat.documents.aside import Readers, packed_kind
from perilune.chat.documents.plain import decoded
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

TEXT = "text/plain; charset=utf-8"


def media_type(purpose: Literal["image", "video"], data: bytes) -> str:
    """The content type of a picture that is fit for its purpose. Raises InputError, naming what would be."""
    if purpose == "image":
        found, known = _image(data), "PNG, JPEG, WebP or GIF"
    else:
        found, known = _video(data), "mp4, mov, 3gp, webm, mkv, avi, flv, mpeg or wmv"
    if found is None:
        raise InputError(f"is no {purpose} of a known format", field="file", mend=f"send {known}")
    return found


async def text_of(data: bytes, readers: Readers) -> bytes:
    """The text of a document, in UTF-8: that of PDF and office files is taken out; source code, Markdown,
    JSON, CSV and whatever else is text stays as it stands. Raises UnsupportedInput for anything else."""
    if (kind := packed_kind(data)) is not None:
        return (await readers.read(kind, data)).text.encode()
    text = await asyncio.to_thread(_utf8, data)
    if text is None:
        raise UnsupportedInput(
            "is not text in UTF-8, or in UTF-16 with a byte order mark",
            field="file",
            mend="save it so, or as PDF or an office file, and send it again",
        )
    return text


def _utf8(data: bytes) -> bytes | None:
    text = decoded(data)
    return None if text is None else text.encode()


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
