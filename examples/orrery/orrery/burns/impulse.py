"""A short burn, as a step in velocity."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orrery.core.motion import StateVector
from orrery.core.vectors import Vec, add, norm, scale, unit

STANDARD_GRAVITY = 0.00980665
"""In km/s^2, as rocket engineers count exhaust speed."""


@dataclass(frozen=True)
class Burn:
    """A change of velocity, in km/s."""

    change: Vec

    @property
    def cost(self) -> float:
        return norm(self.change)

    def apply(self, state: StateVector) -> StateVector:
        faster = add(state.velocity, self.change)
        return StateVector(state.position, faster, state.time)

    def fuel_share(self, impulse: float) -> float:
        """Part of the ship's mass that is burnt, by the rocket equation."""
        return 1.0 - math.exp(-self.cost / (impulse * STANDARD_GRAVITY))


def prograde(state: StateVector, amount: float) -> Burn:
    """Along the motion; a negative amount brakes."""
    return Burn(scale(unit(state.velocity), amount))
