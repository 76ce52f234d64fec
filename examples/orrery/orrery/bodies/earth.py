"""The Earth, where the clocks and the observers are."""

import math

from orrery.bodies.planet import Planet
from orrery.core import constants
from orrery.core.elements import Elements
from orrery.core.motion import StateVector

PLANET = Planet(
    name="Earth",
    mu=constants.EARTH,
    radius=constants.RADIUS["earth"],
    orbit=Elements(
        axis=1.00000 * constants.AU,
        eccentricity=0.01671,
        periapsis=math.radians(102.937),
        anomaly=math.radians(357.517),
    ),
    day=86_164.0905,
)


def at(time: float) -> StateVector:
    return PLANET.at(time)


def sidereal_angle(time: float) -> float:
    """How far Greenwich has turned since the equinox crossed it."""
    days = time / constants.DAY
    return math.radians(280.46062 + 360.98564737 * days) % math.tau


def circular(altitude: float) -> StateVector:
    """A circular orbit over the equator, at a height in km."""
    radius = PLANET.radius + altitude
    speed = math.sqrt(PLANET.mu / radius)
    return StateVector((radius, 0.0, 0.0), (0.0, speed, 0.0))
