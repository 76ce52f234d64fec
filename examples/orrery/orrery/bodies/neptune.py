"""Neptune, found by arithmetic before it was seen."""

import math

from orrery.bodies.planet import Planet
from orrery.core import constants
from orrery.core.elements import Elements
from orrery.core.motion import StateVector

PLANET = Planet(
    name="Neptune",
    mu=constants.NEPTUNE,
    radius=constants.RADIUS["neptune"],
    orbit=Elements(
        axis=30.0699 * constants.AU,
        eccentricity=0.00946,
        inclination=math.radians(1.768),
        node=math.radians(131.784),
        periapsis=math.radians(276.336),
        anomaly=math.radians(256.228),
    ),
    day=57_996.0,
)
FOUND = -4_836_000_000.0
"""The night of its discovery in 1846, about."""


def at(time: float) -> StateVector:
    return PLANET.at(time)


def laps_since_discovery(now: StateVector) -> float:
    return (now.time - FOUND) / PLANET.year
