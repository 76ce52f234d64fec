"""Ids of calls: they sort by time, and no two are the same."""

from __future__ import annotations

import base64
import os
import random
import time

_CROCKFORD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789ABCDEFGHJKMNPQRSTVWXYZ")
"""From the digits of base32 to those that sort as their values do."""

_chance = random.Random(os.urandom(32))
"""Ids must differ, not be secret; asking the system for each one lets go of the interpreter's lock."""


def new_request_id() -> str:
    """26 characters that sort by time of making: 48 bits of milliseconds, 80 random bits."""
    value = int(time.time() * 1000) << 80 | _chance.getrandbits(80)
    return base64.b32encode(value.to_bytes(20, "big"))[-26:].translate(_CROCKFORD).decode()
