"""Jupiter, which pulls at everything else."""

import math

from orrery.bodies.planet import Planet
from orrery.core import constants
from orrery.core.elements import Elements
from orrery.core.motion import StateVector
from orrery.core.vectors import Vec, scale

PLANET = Planet(
    name="Jupiter",
    mu=constants.JUPITER,
    radius=constants.RADIUS["jupiter"],
    orbit=Elements(
        axis=5.2044 * constants.AU,
        eccentricity=0.0489,
        inclination=math.radians(1.303),
        node=math.radians(100.464),
        periapsis=math.radians(273.867),
        anomaly=math.radians(20.020),
    ),
    day=35_730.0,
)


def at(time: float) -> StateVector:
    return PLANET.at(time)


def tug_on_sun(jupiter: StateVector) -> Vec:
    """Where the Sun stands about the common centre of mass."""
    share = PLANET.mu / (PLANET.mu + constants.SUN)
    return scale(jupiter.position, -share)
