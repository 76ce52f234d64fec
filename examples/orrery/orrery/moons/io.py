"""Io, kneaded by its neighbours into volcanoes."""

from orrery.bodies import jupiter
from orrery.core.elements import Elements
from orrery.core.motion import StateVector
from orrery.moons.satellite import Satellite

MOON = Satellite(
    name="Io",
    planet=jupiter.PLANET,
    radius=1_821.6,
    orbit=Elements(axis=421_700.0, eccentricity=0.0041),
)


def at(time: float) -> StateVector:
    return MOON.at(time)


def flux_tube_speed(state: StateVector) -> float:
    """How fast Jupiter's field sweeps past the moon, in km/s."""
    field = 6.283185307179586 * state.radius / jupiter.PLANET.day
    return field - state.speed
