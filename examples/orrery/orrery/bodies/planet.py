"""What all planets share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orrery.core.constants import SUN
from orrery.core.elements import Elements
from orrery.core.motion import StateVector


@dataclass(frozen=True)
class Planet:
    """A body on an ellipse about the Sun."""

    name: str
    mu: float
    radius: float
    orbit: Elements
    day: float
    """Sidereal rotation in seconds; negative when retrograde."""

    def at(self, time: float) -> StateVector:
        return self.orbit.at(time, SUN)

    @property
    def year(self) -> float:
        return self.orbit.period(SUN)

    @property
    def surface_gravity(self) -> float:
        """At the equator, in m/s^2."""
        return 1000.0 * self.mu / self.radius**2

    @property
    def reach(self) -> float:
        """Radius within which the planet's pull wins over the Sun's."""
        return self.orbit.axis * math.pow(self.mu / SUN, 0.4)


def between(one: Planet, other: Planet, time: float) -> StateVector:
    """The motion of `one`, seen from `other`."""
    return one.at(time).seen_from(other.at(time))
