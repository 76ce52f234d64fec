"""Damage to images and videos that keeps their parts' lengths and sums right."""

from __future__ import annotations

import struct
import zlib
from random import Random

from tests.chat.hostile_media import PNG_HEAD, chunk
from tests.fuzz.containers import damaged_parts
from tests.fuzz.mutation import damaged_bytes, number

FOURCC = (
    *(b"moov", b"mvhd", b"tkhd", b"mdhd", b"stts", b"stsc", b"stsz", b"stco", b"stsd", b"elst", b"avcC"),
    *(b"avih", b"strh", b"strf", b"idx1", b"movi", b"\x1aE\xdf\xa3", b"\x18S\x80g", b"\x16T\xaek", b"onMe"),
)
"""Names behind which the numbers of a video's head stand."""


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """Names and bodies of a PNG's chunks, as far as they can be read."""
    found: list[tuple[bytes, bytes]] = []
    at = len(PNG_HEAD)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _extra_chunk(random: Random) -> tuple[bytes, bytes]:
    bomb = zlib.compress(bytes(random.choice((10, 100_000, 3_000_000))))
    return random.choice(
        (
            (b"zTXt", b"k\0\0" + bomb),
            (b"iTXt", b"k\0\1\0\0\0" + bomb),
            (b"iCCP", b"k\0\0" + bomb),
            (b"acTL", struct.pack(">II", random.choice((0, 2, 2**31)), 0)),
            (b"fcTL", random.randbytes(26)),
            (b"fdAT", random.randbytes(30)),
            (b"tRNS", random.randbytes(6)),
            (b"PLTE", random.randbytes(30)),
            (b"eXIf", b"MM\0*" + random.randbytes(40)),
            (b"IDAT", zlib.compress(random.randbytes(200))),
        )
    )


def damaged_png(random: Random, data: bytes) -> bytes:
    """Chunks changed, moved, doubled or added; their lengths and sums right."""
    chunks = chunks_of(data)
    if not chunks:
        return damaged_bytes(random, data)
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(chunks))
        name, body = chunks[at]
        match random.randrange(6):
            case 0:
                chunks.insert(at, _extra_chunk(random))
            case 1:
                chunks.insert(random.randrange(len(chunks) + 1), chunks[at])
            case 2 if len(chunks) > 1:
                del chunks[at]
            case 3 if name == b"IHDR" and len(body) == 13:
                size = random.choice((0, 1, 28, 7000, 10_000, 49_000, 2**31 - 1, 2**31))
                chunks[at] = (name, struct.pack(">I", size) + body[4:])
            case 4 if name == b"IDAT":
                chunks[at] = (name, zlib.compress(bytes(random.choice((0, 10, 5_000_000)))))
            case _:
                chunks[at] = (name, damaged_bytes(random, body))
    return PNG_HEAD + b"".join(chunk(*one) for one in chunks)


def damaged_media(random: Random, data: bytes) -> bytes:
    if data.startswith(PNG_HEAD) and random.random() < 0.7:
        return damaged_png(random, data)
    if random.random() < 0.6:
        return damaged_parts(random, data, damaged_field)
    found = [at for name in FOURCC if (at := data.find(name)) >= 0]
    if found and random.random() < 0.5:
        at = random.choice(found) + random.randrange(-4, 60)
        return data[: max(at, 0)] + number(random, 4) + data[max(at, 0) + 4 :]
    return damaged_bytes(random, data)


def damaged_field(random: Random, data: bytes) -> bytes:
    """A number of a part's body set, where numbers stand; else its bytes damaged."""
    if len(data) < 2 or random.random() < 0.4:
        return damaged_bytes(random, data)
    width = random.choice((1, 2, 4))
    at = int(random.random() ** 2 * len(data)) // width * width
    return data[:at] + number(random, width) + data[at + width :]
