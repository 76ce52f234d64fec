"""Titan, the moon with weather."""

import math

from orrery.bodies import saturn
from orrery.core.elements import Elements
from orrery.core.motion import StateVector
from orrery.moons.satellite import Satellite

MOON = Satellite(
    name="Titan",
    planet=saturn.PLANET,
    radius=2_574.7,
    orbit=Elements(axis=1_221_870.0, eccentricity=0.0288, inclination=math.radians(0.349)),
)
AIR_TOP = 1_000.0


def at(time: float) -> StateVector:
    return MOON.at(time)


def in_air(probe: StateVector, time: float) -> bool:
    """Whether a probe about Saturn is inside Titan's air."""
    return probe.seen_from(at(time)).radius < MOON.radius + AIR_TOP
