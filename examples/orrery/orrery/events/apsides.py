"""Nearest and farthest points of an orbit."""

from collections.abc import Iterator

from orrery.core.motion import StateVector
from orrery.events.search import Track, crossings


def outward(state: StateVector) -> float:
    return state.radial_speed


def inward(state: StateVector) -> float:
    return -state.radial_speed


def nearest(track: Track, start: float, end: float, step: float) -> Iterator[float]:
    return crossings(track, outward, start, end, step)


def farthest(track: Track, start: float, end: float, step: float) -> Iterator[float]:
    return crossings(track, inward, start, end, step)
