"""Damage that keeps most of a file's shape, so that it reaches further than the first check.

Everything is drawn from the given `Random`: the same seed does the same damage.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutator = Callable[[Random, bytes], bytes]

NUMBERS = (
    *(0, 1, -1, 2, 3, 8, 63, 255, 256, 4096, 2**15, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**63),
    *(10**30, 10**400, 0.5, -0.5, 1e-9, 1e308, float("inf"), float("nan")),
)
TEXTS = (
    *("", "x", "yarn", "default", "silu", "BF16", "F32", "I64", "F8_E4M3", "..", "/etc/passwd", "\0", "a\nb"),
    *("model.safetensors", "../model.safetensors", "\ud800", "☾" * 90, "%s%n", "kimi_k25", "deepseek_v3"),
)
PNG_HEAD = b"\x89PNG\r\n\x1a\n"
FOURCC = (
    *(b"moov", b"mvhd", b"tkhd", b"mdhd", b"stts", b"stsc", b"stsz", b"stco", b"stsd", b"elst", b"avcC"),
    *(b"avih", b"strh", b"strf", b"idx1", b"movi", b"\x1aE\xdf\xa3", b"\x18S\x80g", b"\x16T\xaek", b"onMe"),
)
"""Names behind which the numbers of a video's head stand."""


# ---- bytes


def damaged_bytes(random: Random, data: bytes) -> bytes:
    """A few bytes set, numbers overwritten, spans cut, doubled or moved; heads more often than tails."""
    out = bytearray(data or b"\0")
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        at = int(random.random() ** random.choice((1, 3)) * len(out))
        span = random.choice((1, 2, 4, 8, random.randint(1, 64)))
        match random.randrange(7):
            case 0:
                out[at : at + 1] = random.randbytes(1)
            case 1:
                out[at : at + span] = _number(random, random.choice((1, 2, 4, 8)))
            case 2:
                del out[at : at + span]
            case 3:
                out[at:at] = out[at : at + span]
            case 4:
                to = random.randrange(len(out) + 1)
                out[to:to] = out[at : at + span]
            case 5:
                del out[max(1, at) :]
            case _:
                out[at : at + span] = random.randbytes(span)
        out = out or bytearray(b"\0")
    return bytes(out)


def _number(random: Random, width: int) -> bytes:
    value = random.choice((0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, -1, -2))
    return (value % 256**width).to_bytes(width, random.choice(("little", "big")))


# ---- JSON


def damaged_json(random: Random, data: bytes) -> bytes:
    """The document with values replaced, dropped, doubled or nested; now and then its bytes damaged."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return damaged_bytes(random, data)
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        document = _damaged_value(random, document)
    text = json.dumps(document, ensure_ascii=random.random() < 0.9).encode("utf-8", "surrogatepass")
    return damaged_bytes(random, text) if random.random() < 0.1 else text


def _damaged_value(random: Random, document: Any) -> Any:
    places = _places(document)
    if not places:
        return junk(random)
    holder, key = random.choice(places)
    value = holder[key]
    match random.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(value, (int, float)):
            holder[key] = random.choice((value + 1, value - 1, value * 2, -value, value // 2 if value else 7))
        case 2:
            other, name = random.choice(places)
            holder[key] = other[name]
        case 3 if isinstance(holder, dict):
            holder[random.choice((*TEXTS, str(key) + "x"))] = value
        case 3 | 4:
            holder[key] = random.choice(([value], {"x": value}, [], {}, [value] * 9))
        case _:
            holder[key] = junk(random)
    # A value put in two places would grow without end as the other is changed.
    return json.loads(json.dumps(document)[:2_000_000]) if _small(document) else {}


def _small(document: Any) -> bool:
    try:
        return len(json.dumps(document)) < 200_000
    except (ValueError, RecursionError):
        return False


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(holder, key) of everything within."""
    inner: Sequence[Any] = ()
    if isinstance(value, dict):
        inner = [(value, key) for key in value]
    elif isinstance(value, list):
        inner = [(value, key) for key in range(len(value))]
    return [*inner, *(place for holder, key in inner for place in _places(holder[key]))]


def junk(random: Random) -> Any:
    match random.randrange(6):
        case 0:
            return random.choice((None, True, False))
        case 1:
            return random.choice(TEXTS)
        case 2:
            return [junk(random) for _ in range(random.randrange(3))]
        case 3:
            return {random.choice(TEXTS): junk(random) for _ in range(random.randrange(3))}
        case _:
            return random.choice(NUMBERS)


def damaged_head(random: Random, data: bytes) -> bytes:
    """A flag byte and a safetensors file: its JSON damaged and its length set right again, or its bytes."""
    flag = bytes((random.randrange(256),)) if random.random() < 0.2 else data[:1]
    body = data[1:]
    length = struct.unpack("<Q", body[:8])[0] if len(body) >= 8 else 0
    if not 0 < length <= len(body) - 8 or random.random() < 0.15:
        return flag + damaged_bytes(random, body)
    head = damaged_json(random, body[8 : 8 + length])
    claimed = len(head) + random.choice((0, 0, 0, 0, 0, 0, 1, -1, 2**63))
    return flag + struct.pack("<Q", max(claimed, 0)) + head + body[8 + length :]


# ---- tokenizer files: a flag byte says which


def damaged_tokenizer(random: Random, data: bytes) -> bytes:
    if data[:1] != b"r":
        return data[:1] + damaged_json(random, data[1:])
    lines = data[1:].split(b"\n")
    for _ in range(random.choice((1, 1, 2, 5))):
        at, other = random.randrange(len(lines)), random.randrange(len(lines))
        word = base64.b64encode(random.randbytes(random.randint(0, 6)))
        match random.randrange(6):
            case 0:
                lines[at] = word + b" " + str(random.choice((at, other, -1, 2**70))).encode()
            case 1:
                lines[at], lines[other] = lines[other], lines[at]
            case 2:
                lines[at] = lines[other]
            case 3:
                lines[at] = b""
            case 4:
                lines[at] = damaged_bytes(random, lines[at])
            case _:
                lines.append(word + b" " + str(len(lines)).encode())
    return data[:1] + b"\n".join(lines)


# ---- pictures


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


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
    found = [at for name in FOURCC if (at := data.find(name)) >= 0]
    if found and random.random() < 0.6:
        out = bytearray(data)
        at = random.choice(found) + random.randrange(-4, 60)
        out[at : at + 4] = _number(random, 4)
        return bytes(out)
    return damaged_bytes(random, data)
