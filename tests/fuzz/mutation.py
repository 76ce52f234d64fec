"""Damage that keeps most of a file's shape, so that it reaches further than the first check.

Everything is drawn from the given `Random`: the same seed does the same damage.
"""

from __future__ import annotations

import json
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
    *("x" * 300, "y" * 300 + ".safetensors", "foo.weight_shape", "weight_shape"),
    *("model.safetensors", "../model.safetensors", "\ud800", "☾" * 90, "%s%n", "kimi_k25", "deepseek_v3"),
)


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
                out[at : at + span] = number(random, random.choice((1, 2, 4, 8)))
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


def number(random: Random, width: int) -> bytes:
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
