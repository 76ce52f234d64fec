"""Files of images and videos as trees of their parts: damage a part, and all lengths are right again."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

LARGEST = 60_000
"""Bytes of a damaged file."""


@dataclass
class Part:
    """`body` is what stands before `inner`, and all there is where there is nothing within."""

    name: bytes
    body: bytes = b""
    inner: list[Part] = field(default_factory=list)
    tail: bytes = b""
    """Behind the length, such as a JPEG's scan."""


Reader = Callable[[bytes], list[Part]]
Writer = Callable[[list[Part]], bytes]


def format_of(data: bytes) -> tuple[Reader, Writer] | None:
    if data[4:8] == b"ftyp":
        return read_boxes, write_boxes
    if data.startswith(b"RIFF"):
        return read_riff, write_riff
    if data.startswith(b"\x1aE\xdf\xa3"):
        return read_ebml, write_ebml
    if data.startswith(b"\xff\xd8"):
        return read_jpeg, write_jpeg
    if data.startswith(b"GIF8"):
        return read_gif, write_gif
    return None


# ---- MP4 and MOV

_BEFORE = {
    **dict.fromkeys((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"mvex", b"moof"), 0),
    **{b"traf": 0, b"udta": 0, b"meta": 4, b"stsd": 8, b"dref": 8, b"avc1": 78, b"mp4v": 78, b"mfra": 0},
}


def read_boxes(data: bytes) -> list[Part]:
    parts, at = [], 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        end = at + size if 8 <= size <= len(data) - at else len(data)
        name, body = data[at + 4 : at + 8], data[at + 8 : end]
        before = _BEFORE.get(name)
        if before is None or len(body) < before:
            parts.append(Part(name, body))
        else:
            parts.append(Part(name, body[:before], read_boxes(body[before:])))
        at = end
    return parts


def write_boxes(parts: list[Part]) -> bytes:
    out = []
    for part in parts:
        body = part.body + write_boxes(part.inner)
        out.append(struct.pack(">I", 8 + len(body)) + part.name + body)
    return b"".join(out)


# ---- AVI and WebP


def read_riff(data: bytes) -> list[Part]:
    parts, at = [], 0
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 8 + size]
        if name in (b"RIFF", b"LIST"):
            parts.append(Part(name, body[:4], read_riff(body[4:])))
        else:
            parts.append(Part(name, body))
        at += 8 + size + size % 2
    return parts


def write_riff(parts: list[Part]) -> bytes:
    out = []
    for part in parts:
        body = part.body + write_riff(part.inner)
        out.append(part.name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2))
    return b"".join(out)


# ---- Matroska and WebM

_MASTERS = (
    *(
        b"\x1aE\xdf\xa3",
        b"\x18S\x80g",
        b"\x15I\xa9f",
        b"\x16T\xaek",
        b"\xae",
        b"\xe0",
        b"\x1fC\xb6u",
        b"\xa0",
    ),
    *(b"\x11M\x9bt", b"M\xbb", b"\x1cS\xbbk", b"\xbb", b"\xb7", b"\x12T\xc3g"),
)
"""Head, segment and information; tracks, one, its pictures; cluster, group; places, cues and tags."""


def read_ebml(data: bytes) -> list[Part]:
    parts, at = [], 0
    while at < len(data):
        width = 9 - data[at].bit_length()
        name = data[at : at + width]
        at += width
        if at >= len(data) or width > 4:
            break
        wide = 9 - data[at].bit_length()
        size = int.from_bytes(data[at : at + wide], "big") & (1 << 7 * wide) - 1
        at += wide
        body = data[at : at + size]
        parts.append(Part(name, inner=read_ebml(body)) if name in _MASTERS else Part(name, body))
        at += size
    return parts


def write_ebml(parts: list[Part]) -> bytes:
    out = []
    for part in parts:
        body = part.body + write_ebml(part.inner)
        out.append(part.name + (1 << 28 | len(body)).to_bytes(4, "big") + body)
    return b"".join(out)


# ---- JPEG and GIF


def read_jpeg(data: bytes) -> list[Part]:
    parts, at = [], 2
    while at + 4 <= len(data):
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        after = end
        if data[at + 1] == 0xDA:
            while after + 1 < len(data) and (
                data[after] != 0xFF or data[after + 1] in (0, *range(0xD0, 0xD8))
            ):
                after += 1
        parts.append(Part(data[at : at + 2], data[at + 4 : end], tail=data[end:after]))
        at = max(after, at + 2)
    return parts


def write_jpeg(parts: list[Part]) -> bytes:
    written = (
        part.name + struct.pack(">H", (2 + len(part.body)) % 65536) + part.body + part.tail for part in parts
    )
    return b"\xff\xd8" + b"".join(written) + b"\xff\xd9"


def read_gif(data: bytes) -> list[Part]:
    at = 13 + (3 * (2 << (data[10] & 7)) if len(data) > 12 and data[10] & 128 else 0)
    parts = [Part(b"", data[:at])]
    while at < len(data) and data[at] in b"\x21\x2c":
        start, table = at, data[at + 9] if at + 9 < len(data) else 0
        at += 2 if data[at] == 0x21 else 11 + (3 * (2 << (table & 7)) if table & 128 else 0)
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
        parts.append(Part(b"", data[start:at]))
    return [*parts, Part(b"", data[at:])]


def write_gif(parts: list[Part]) -> bytes:
    return b"".join(part.body for part in parts)


# ---- damage


def damaged_parts(random: Random, data: bytes, damaged: Callable[[Random, bytes], bytes]) -> bytes:
    """Parts changed by `damaged`, doubled, dropped, moved, renamed, or there very often."""
    known = format_of(data)
    if known is None:
        return damaged(random, data)
    read, write = known
    parts = read(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        places = _places(parts)
        if not places:
            break
        holder, at = random.choice(places)
        part = holder[at]
        match random.randrange(8):
            case 0:
                del holder[at]
            case 1:
                holder.insert(random.randrange(len(holder) + 1), part)
            case 2:
                other, to = random.choice(places)
                if part is not other[min(to, len(other) - 1)] and not part.inner:
                    other.insert(to, part)
            case 3:
                other, to = random.choice(places)
                holder[at] = Part(other[min(to, len(other) - 1)].name, part.body, part.inner, part.tail)
            case 4 if len(write([part])) < 200:
                holder[at:at] = [part] * random.choice((3, 3, 50, 300))
            case _ if part.tail and random.random() < 0.5:
                part.tail = damaged(random, part.tail)
            case _:
                part.body = damaged(random, part.body)
    return write(parts)[:LARGEST]


def _places(parts: list[Part]) -> list[tuple[list[Part], int]]:
    own = [(parts, at) for at in range(len(parts))]
    return [*own, *(place for part in parts for place in _places(part.inner))]
