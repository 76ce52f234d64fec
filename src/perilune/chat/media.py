"""From the data URLs of a request to what the vision tower takes: patches of bytes, and where they go.

Two steps. `plan` reads the media's heads: how many placeholders and tokens each will be, refusing what is
no media or too large before a pixel is decoded. `Image.items` and `Video.items` then decode, one image or
one piece of a video at a time. Padding is black before normalisation, so bytes say it all; the engine
normalises. Pillow, PyAV and numpy come with `perilune[media]` and are imported when first needed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perilune.chat.data_urls import start_of_bytes
from perilune.chat.media_rules import MediaRules, fit, tokens_of
from perilune.chat.messages import ImagePart, Message, TextPart
from perilune.errors import InputError, UnsupportedInput

if TYPE_CHECKING:
    import numpy as np

MAX_BYTES = 100 * 1024**2
"""Of one image or video as it is sent."""
MAX_PATCH_BYTES = 192 * 1024**2
"""Of all patches of one request: they travel to the engine with the call."""
KEY_BYTES = 16
COLOURS = 3


@dataclass(frozen=True)
class Item:
    """What the tower sees at once: an image, or up to four frames of a video."""

    key: bytes
    """Equal for equal content."""
    grid: tuple[int, int, int]
    """Frames, rows and columns of patches."""
    patches: bytes
    """[frames x rows x columns, 3, p, p] uint8."""


class Planned(ABC):
    """One image or video of a request; nothing is decoded yet."""

    tokens: tuple[int, ...]
    """One number for each placeholder."""
    times: tuple[str, ...] = ()
    """When each piece of a video begins; an image has none."""
    patch_bytes: int

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Decode: one item for each placeholder. Raises InputError for content that breaks off."""


class Image(Planned):
    def __init__(self, data: bytes, rules: MediaRules, where: str) -> None:
        """Raises InputError naming `where`."""
        from perilune.chat.pictures import image_size

        self._data, self._rules, self._where = data, rules, where
        self._fitted = fit(*image_size(data, where), rules)
        self.tokens = (tokens_of(self._fitted, rules),)
        self.patch_bytes = self._fitted.padded_width * self._fitted.padded_height * COLOURS

    def items(self) -> Iterator[Item]:
        from perilune.chat.pictures import decode_image, fitted_pixels, patches_of

        pixels = fitted_pixels(decode_image(self._data, self._where), self._fitted)
        yield item_of([patches_of(pixels, self._rules.patch_size)], content_key(self._data, 0))


def plan(messages: Sequence[Message], rules: MediaRules) -> tuple[Planned, ...]:
    """The media of a conversation in order.

    Raises InputError naming the part, UnsupportedInput where Pillow or PyAV is missing.
    """
    planned: list[Planned] = []
    for position, message in enumerate(messages):
        for place, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
            if isinstance(part, TextPart):
                continue
            where = f"messages[{position}].content[{place}]"
            planned.append(_plan_one(part.url, isinstance(part, ImagePart), rules, where))
            if sum(one.patch_bytes for one in planned) > MAX_PATCH_BYTES:
                raise InputError(
                    f"the request's images and videos are together more than {MAX_PATCH_BYTES >> 20} MiB "
                    "of pixels",
                    field=where,
                    mend="send fewer or smaller ones, or a shorter video",
                )
    return tuple(planned)


def _plan_one(url: str, is_image: bool, rules: MediaRules, where: str) -> Planned:
    data = data_of(url, where)
    try:
        if is_image:
            return Image(data, rules, where)
        from perilune.chat.videos import Video

        return Video(data, rules, where)
    except ModuleNotFoundError as error:
        raise UnsupportedInput(
            f"{error.name} is not installed", field=where, mend="pip install 'perilune[media]'"
        ) from error


def data_of(url: str, where: str) -> bytes:
    """The bytes of a base64 data URL. Raises InputError."""
    body = url[start_of_bytes(url, where) :]
    if len(body) // 4 * 3 > MAX_BYTES:
        raise InputError(f"is larger than {MAX_BYTES >> 20} MiB", field=where, mend="send a smaller file")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError("is not valid base64", field=where, mend="encode the file's bytes again") from error
    if not data:
        raise InputError("holds no bytes", field=where, mend="send the file's bytes, or leave the part out")
    return data


def content_key(data: bytes, piece: int) -> bytes:
    return hashlib.blake2b(data, digest_size=KEY_BYTES, salt=piece.to_bytes(8, "little")).digest()


def item_of(frames: Sequence[np.ndarray], key: bytes) -> Item:
    """Frames' patches [rows, columns, 3, p, p], all of one size, as an item."""
    rows, columns = frames[0].shape[:2]
    return Item(key, (len(frames), rows, columns), b"".join(frame.tobytes() for frame in frames))
