"""Mercury, whose day is two thirds of its year."""

import math

from orrery.bodies.planet import Planet
from orrery.core import constants
from orrery.core.elements import Elements
from orrery.core.motion import StateVector

PLANET = Planet(
    name="Mercury",
    mu=constants.MERCURY,
    radius=constants.RADIUS["mercury"],
    orbit=Elements(
        axis=0.38710 * constants.AU,
        eccentricity=0.20563,
        inclination=math.radians(7.005),
        node=math.radians(48.331),
        periapsis=math.radians(29.124),
        anomaly=math.radians(174.796),
    ),
    day=58.646 * constants.DAY,
)


def at(time: float) -> StateVector:
    return PLANET.at(time)


def solar_day() -> float:
    """From noon to noon: two Mercury years."""
    return 1.0 / (1.0 / PLANET.day - 1.0 / PLANET.year)
