"""Europa, in step with Io: one lap to its two."""

from orrery.bodies import jupiter
from orrery.core.elements import Elements
from orrery.core.motion import StateVector
from orrery.moons import io
from orrery.moons.satellite import Satellite

MOON = Satellite(
    name="Europa",
    planet=jupiter.PLANET,
    radius=1_560.8,
    orbit=Elements(axis=671_034.0, eccentricity=0.009),
)


def at(time: float) -> StateVector:
    return MOON.at(time)


def from_io(time: float) -> StateVector:
    """Europa's motion, seen from Io."""
    return at(time).seen_from(io.at(time))


def resonance() -> float:
    """Laps of Io in one lap of Europa."""
    return MOON.month / io.MOON.month
