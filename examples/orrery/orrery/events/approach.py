"""How near two bodies come."""

from orrery.core.motion import StateVector
from orrery.events.apsides import nearest
from orrery.events.search import Track


def gap(one: Track, other: Track) -> Track:
    """The track of one body, seen from another."""

    def seen(time: float) -> StateVector:
        return one(time).seen_from(other(time))

    return seen


def closest(one: Track, other: Track, start: float, end: float, step: float) -> StateVector:
    """Their relative motion at the nearest meeting of a span."""
    track = gap(one, other)
    times = [start, end, *nearest(track, start, end, step)]
    return min((track(time) for time in times), key=lambda state: state.radius)
