"""Seeing things where they were."""

from collections.abc import Callable

from orrery.core.constants import LIGHT_SPEED
from orrery.core.motion import StateVector

Track = Callable[[float], StateVector]


def delay(body: StateVector, viewer: StateVector) -> float:
    return body.seen_from(viewer).radius / LIGHT_SPEED


def as_seen(body: Track, viewer: StateVector, turns: int = 3) -> StateVector:
    """The motion of a body when the light that arrives now left it."""
    late = 0.0
    for _ in range(turns):
        late = delay(body(viewer.time - late), viewer)
    return body(viewer.time - late)
