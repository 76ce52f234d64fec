"""Height and azimuth, for someone who stands on the Earth."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orrery.bodies import earth
from orrery.core.motion import StateVector
from orrery.sky.direction import look


@dataclass(frozen=True)
class Place:
    latitude: float
    longitude: float
    """East is positive."""

    def height(self, body: StateVector) -> float:
        """Angle of a body (about the Sun) above the horizon."""
        seen = look(body, earth.at(body.time))
        hour = earth.sidereal_angle(body.time) + self.longitude - seen.ascension
        sines = math.sin(self.latitude) * math.sin(seen.declination)
        cosines = math.cos(self.latitude) * math.cos(seen.declination)
        return math.asin(sines + cosines * math.cos(hour))

    def is_up(self, body: StateVector) -> bool:
        return self.height(body) > 0.0
