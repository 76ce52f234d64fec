"""Right ascension and declination."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orrery.core.frames import to_equator
from orrery.core.motion import StateVector


@dataclass(frozen=True)
class Direction:
    """A place on the sky, in radians."""

    ascension: float
    declination: float
    distance: float

    def separation(self, other: Direction) -> float:
        sines = math.sin(self.declination) * math.sin(other.declination)
        cosines = math.cos(self.declination) * math.cos(other.declination)
        turn = math.cos(self.ascension - other.ascension)
        return math.acos(max(-1.0, min(1.0, sines + cosines * turn)))


def look(body: StateVector, viewer: StateVector) -> Direction:
    """Where a viewer has to look for a body."""
    x, y, z = to_equator(body.seen_from(viewer)).position
    distance = math.sqrt(x * x + y * y + z * z)
    return Direction(math.atan2(y, x) % math.tau, math.asin(z / distance), distance)
