"""Where an orbit pierces the plane of reference."""

from collections.abc import Iterator

from orrery.core.motion import StateVector
from orrery.events.search import Track, crossings


def above(state: StateVector) -> float:
    return state.position[2]


def below(state: StateVector) -> float:
    return -state.position[2]


def ascending(track: Track, start: float, end: float, step: float) -> Iterator[float]:
    return crossings(track, above, start, end, step)


def descending(track: Track, start: float, end: float, step: float) -> Iterator[float]:
    return crossings(track, below, start, end, step)
