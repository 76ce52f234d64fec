"""Leaving for good."""

import math

from orrery.burns.impulse import Burn, prograde
from orrery.core.motion import StateVector


def escape_speed(radius: float, mu: float) -> float:
    return math.sqrt(2.0 * mu / radius)


def is_bound(state: StateVector, mu: float) -> bool:
    return state.energy(mu) < 0.0


def escape(state: StateVector, mu: float, spare: float = 0.0) -> Burn:
    """The burn after which `spare` km/s are left far away."""
    wanted = math.sqrt(spare**2 + 2.0 * mu / state.radius)
    return prograde(state, wanted - state.speed)
