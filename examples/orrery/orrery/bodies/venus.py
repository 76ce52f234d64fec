"""Venus, which turns backwards under its clouds."""

import math

from orrery.bodies.planet import Planet
from orrery.core import constants
from orrery.core.elements import Elements
from orrery.core.motion import StateVector

PLANET = Planet(
    name="Venus",
    mu=constants.VENUS,
    radius=constants.RADIUS["venus"],
    orbit=Elements(
        axis=0.72333 * constants.AU,
        eccentricity=0.00677,
        inclination=math.radians(3.3947),
        node=math.radians(76.680),
        periapsis=math.radians(54.884),
        anomaly=math.radians(50.115),
    ),
    day=-243.025 * constants.DAY,
)


def at(time: float) -> StateVector:
    return PLANET.at(time)


def is_evening_star(earth: StateVector, time: float) -> bool:
    """East of the Sun, so that it sets after it."""
    venus = at(time).seen_from(earth).position
    sun = earth.position
    return sun[0] * venus[1] - sun[1] * venus[0] > 0.0
