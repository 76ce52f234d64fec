"""Our own Moon."""

import math

from orrery.bodies import earth
from orrery.core.elements import Elements
from orrery.core.motion import StateVector
from orrery.moons.satellite import Satellite

MOON = Satellite(
    name="Luna",
    planet=earth.PLANET,
    radius=1_737.4,
    orbit=Elements(
        axis=384_748.0,
        eccentricity=0.0549,
        inclination=math.radians(5.145),
        node=math.radians(125.08),
        periapsis=math.radians(318.15),
        anomaly=math.radians(135.27),
    ),
)


def at(time: float) -> StateVector:
    return MOON.at(time)


def apparent_size(state: StateVector) -> float:
    """Angle that the disc spans from the middle of the Earth."""
    return 2.0 * math.asin(MOON.radius / state.radius)


def is_supermoon(state: StateVector) -> bool:
    return state.radius < 360_000.0
