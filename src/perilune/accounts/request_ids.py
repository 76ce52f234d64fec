"""Ids of calls: they sort by time, and no two are the same."""

from __future__ import annotations

import os
import random
import time

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Digits of base 32 that sort as their values do."""
_PAIRS = [high + low for high in _CROCKFORD for low in _CROCKFORD]
_OF_BYTE = (_CROCKFORD * 8).encode()
"""A digit for each byte, each digit for as many of them."""

_chance = random.Random(os.urandom(32))
"""Ids must differ, not be secret; asking the system for each one lets go of the interpreter's lock."""


def new_request_id() -> str:
    """26 characters that sort by time of making: 48 bits of milliseconds, 80 random bits."""
    now, pairs = int(time.time() * 1000), _PAIRS
    made = (
        f"{pairs[now >> 40]}{pairs[now >> 30 & 1023]}{pairs[now >> 20 & 1023]}"
        f"{pairs[now >> 10 & 1023]}{pairs[now & 1023]}"
    )
    return made + _chance.getrandbits(128).to_bytes(16, "big").translate(_OF_BYTE).decode()
