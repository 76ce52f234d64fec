"""Mars, and the length of its sols."""

import math

from orrery.bodies.planet import Planet
from orrery.core import constants
from orrery.core.elements import Elements
from orrery.core.motion import StateVector

PLANET = Planet(
    name="Mars",
    mu=constants.MARS,
    radius=constants.RADIUS["mars"],
    orbit=Elements(
        axis=1.52368 * constants.AU,
        eccentricity=0.09340,
        inclination=math.radians(1.850),
        node=math.radians(49.558),
        periapsis=math.radians(286.502),
        anomaly=math.radians(19.373),
    ),
    day=88_642.66,
)
SOL = 88_775.244


def at(time: float) -> StateVector:
    return PLANET.at(time)


def sols(start: StateVector, end: StateVector) -> float:
    """Solar days of Mars between two moments."""
    return (end.time - start.time) / SOL
