"""Where a function of time changes its sign."""

from collections.abc import Callable, Iterator

from orrery.core.motion import StateVector

Track = Callable[[float], StateVector]
Sign = Callable[[StateVector], float]


def crossings(track: Track, sign: Sign, start: float, end: float, step: float) -> Iterator[float]:
    """Times at which `sign` turns from negative to positive."""
    before, time = sign(track(start)), start
    while time < end:
        after = sign(track(time + step))
        if before < 0.0 <= after:
            yield bisect(track, sign, time, time + step)
        before, time = after, time + step


def bisect(track: Track, sign: Sign, low: float, high: float) -> float:
    while high - low > 1.0:
        middle = (low + high) / 2.0
        if sign(track(middle)) < 0.0:
            low = middle
        else:
            high = middle
    return high
