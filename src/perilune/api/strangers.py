"""How often one address may come with a wrong key. A right key is never held up by it, so users behind one
address do not suffer for each other."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

from perilune.errors import LimitReached

A_MINUTE = 300
MOST_ADDRESSES = 10_000
"""The one not seen for longest is forgotten first."""


class Strangers:
    """A bucket of tries for each address, filled up again evenly."""

    def __init__(self, a_minute: int = A_MINUTE, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = float(a_minute)
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Address -> tries left, and when that was."""

    def came(self, address: str) -> None:
        """A wrong key. Raises LimitReached when there were too many."""
        name, now = _network(address), self._clock()
        left, since = self._left.pop(name, (self._most, now))
        left = min(self._most, left + (now - since) * self._most / 60)
        self._left[name] = (max(left - 1, 0), now)
        if len(self._left) > MOST_ADDRESSES:
            self._left.popitem(last=False)
        if left < 1:
            raise LimitReached(
                "too many wrong API keys from this address",
                passing=True,
                retry_after_s=(1 - left) * 60 / self._most,
                mend="send a right one",
            )


def _network(address: str) -> str:
    """Of IPv6 the first half: whoever has one address there has them all."""
    if ":" not in address:
        return address
    try:
        whole = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(whole.ipv4_mapped or ipaddress.IPv6Network((whole, 64), strict=False))
