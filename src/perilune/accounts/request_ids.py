"""Ids of calls: they sort by time, and no two are the same."""

from __future__ import annotations

import os
import random
import time

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Digits of base 32 that sort as their values do."""
_PAIRS = [high + low for high in _CROCKFORD for low in _CROCKFORD]
_SHIFTS = tuple(range(120, -1, -10))

_chance = random.Random(os.urandom(32))
"""Ids must differ, not be secret; asking the system for each one lets go of the interpreter's lock."""


def new_request_id() -> str:
    """26 characters that sort by time of making: 48 bits of milliseconds, 80 random bits."""
    value = int(time.time() * 1000) << 80 | _chance.getrandbits(80)
    return "".join([_PAIRS[value >> shift & 1023] for shift in _SHIFTS])
