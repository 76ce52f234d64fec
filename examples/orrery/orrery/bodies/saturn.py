"""Saturn and the tilt of its rings."""

import math

from orrery.bodies.planet import Planet
from orrery.core import constants
from orrery.core.elements import Elements
from orrery.core.motion import StateVector
from orrery.core.vectors import angle_between

PLANET = Planet(
    name="Saturn",
    mu=constants.SATURN,
    radius=constants.RADIUS["saturn"],
    orbit=Elements(
        axis=9.5826 * constants.AU,
        eccentricity=0.0565,
        inclination=math.radians(2.485),
        node=math.radians(113.665),
        periapsis=math.radians(339.392),
        anomaly=math.radians(317.020),
    ),
    day=38_362.4,
)
POLE = (0.0854, 0.4625, 0.8825)


def at(time: float) -> StateVector:
    return PLANET.at(time)


def ring_opening(viewer: StateVector, time: float) -> float:
    """Angle of the rings towards a viewer; zero is edge-on."""
    towards = viewer.seen_from(at(time)).position
    return math.pi / 2.0 - angle_between(POLE, towards)
