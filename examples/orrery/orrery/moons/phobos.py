"""Phobos, which rises in the west of Mars."""

import math

from orrery.bodies import mars
from orrery.core.elements import Elements
from orrery.core.motion import StateVector
from orrery.moons.satellite import Satellite

MOON = Satellite(
    name="Phobos",
    planet=mars.PLANET,
    radius=11.27,
    orbit=Elements(axis=9_376.0, eccentricity=0.0151, inclination=math.radians(1.093)),
)


def at(time: float) -> StateVector:
    return MOON.at(time)


def outruns_ground(state: StateVector) -> bool:
    """Whether it circles faster than the ground turns below."""
    turn = state.speed / state.radius
    return turn > math.tau / mars.PLANET.day
