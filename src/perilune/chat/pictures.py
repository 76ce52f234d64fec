"""Images as pixels and patches, by Pillow and numpy. Files come from strangers: sizes are checked first."""

from __future__ import annotations

import io
import re
import struct
import sys
import zlib

import numpy as np
from PIL import Image as Pillow

from perilune.chat.media_rules import Fitted
from perilune.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Pillow's other readers are not offered strangers' files."""
PNG_HEAD = b"\x89PNG\r\n\x1a\n"
MAX_PIXELS = 50_000_000
MAX_RATIO = 200
"""Longer side to shorter. What is thinner would be shrunk to less than a patch of detail."""
MOST_READS = 300_000
"""Three or four to each of a file's parts."""
MOST_HEAD_WORK = 10**10
"""Bytes copied when each part of the head is joined to all before: a second or two."""
MOST_SCANNED_PIXELS = 10**9
"""A JPEG's scans times its pixels. Each scan goes over the whole image, whatever little it brings: in a
second or two so many pixels are gone over."""
MOST_PACKED_NOTES = 50
"""Of a PNG. Pillow unpacks each to up to 1 MB, profiles without an end to it."""
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)", re.DOTALL)
_PACKED_NOTE = re.compile(rb"iCCP|zTXt|iTXt")
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow's readers raise on damaged files: their own checks, and what else comes of trusting a file."""


class _TooManyParts(Exception):
    """Pillow has read from the file more often than an image of some size needs."""


class _Reader(io.BytesIO):
    """A file that may be read from a limited number of times.

    Pillow walks through a file's parts in Python, keeps many of them, and joins some to all before: a file of
    millions of small parts would take hours and gigabytes, and yet be small enough to be sent."""

    left = MOST_READS
    work = MOST_HEAD_WORK

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        self.work -= self.tell()
        if min(self.left, self.work) < 0:
            raise _TooManyParts
        return super().read(size)

    def open_for_pixels(self) -> None:
        """The head is read: what follows comes in large pieces, and nothing is joined to all before."""
        self.work = sys.maxsize


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """Width and height by the file's head, no pixel decoded. Raises InputError."""
    with _opened(data, where) as image:
        return image.size


def decode_image(data: bytes, where: str) -> Pillow.Image:
    """The image as RGB, transparency dropped; of several frames the first. Raises InputError."""
    with _opened(data, where) as image:
        try:
            return image.convert("RGB")
        except _TooManyParts as error:
            raise _cut_up(where) from error
        except BROKEN as error:
            why = str(error) or "its parts contradict each other"
            raise InputError(
                f"the image cannot be decoded: {why}", field=where, mend="the file is damaged: save it anew"
            ) from error


def scans(data: bytes) -> int:
    """How many scans JPEG images within have, at most."""
    return sum(1 for _ in _SCAN.finditer(data))


def check_size(width: int, height: int, most: int, where: str) -> None:
    """Raises InputError for what is too large, too thin or nothing."""
    if width < 1 or height < 1:
        raise InputError(f"is {width} by {height} pixels", field=where, mend="send one that shows something")
    if width * height > most:
        raise InputError(
            f"is {width} by {height} pixels, at most {most:,} are read",
            field=where,
            mend="make it smaller: the model sees about 3.2 million pixels of an image",
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise InputError(
            f"is {width} by {height} pixels, one side more than {MAX_RATIO} times the other",
            field=where,
            mend="cut it into several",
        )


def fitted_pixels(image: Pillow.Image, fitted: Fitted) -> np.ndarray:
    """[padded height, padded width, 3] uint8, padded with zeros at the right and the bottom."""
    size = (fitted.width, fitted.height)
    if image.size != size:
        image = image.resize(size, Pillow.Resampling.BICUBIC)
    pixels = np.zeros((fitted.padded_height, fitted.padded_width, 3), dtype=np.uint8)
    pixels[: fitted.height, : fitted.width] = np.asarray(image)
    return pixels


def patches_of(pixels: np.ndarray, edge: int) -> np.ndarray:
    """[rows, columns, 3, edge, edge] of an image whose sides are multiples of `edge`."""
    rows, columns = pixels.shape[0] // edge, pixels.shape[1] // edge
    return pixels.reshape(rows, edge, columns, edge, 3).transpose(0, 2, 4, 1, 3)


def _opened(data: bytes, where: str) -> Pillow.Image:
    if data.startswith(PNG_HEAD) and len(_PACKED_NOTE.findall(data)) > MOST_PACKED_NOTES:
        raise _cut_up(where)
    file = _Reader(data)
    try:
        image = Pillow.open(file, formats=FORMATS)
    except _TooManyParts as error:
        raise _cut_up(where) from error
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise InputError(
            f"the image has far more than the {MAX_PIXELS:,} pixels that are read",
            field=where,
            mend="make it smaller",
        ) from error
    except BROKEN as error:
        raise InputError(
            f"is not an image of a known format ({', '.join(FORMATS)}), or its head is damaged",
            field=where,
            mend="send the bytes of such a file, saved anew",
        ) from error
    check_size(*image.size, MAX_PIXELS, where)
    if image.format in ("JPEG", "MPO") and scans(data) * image.width * image.height > MOST_SCANNED_PIXELS:
        raise _cut_up(where)
    file.open_for_pixels()
    return image


def _cut_up(where: str) -> InputError:
    return InputError(
        "the image's file is cut into far more parts than an image has",
        field=where,
        mend="save it anew, without comments and other additions",
    )
