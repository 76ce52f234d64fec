"""The cheapest two burns between circular orbits of one plane."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orrery.burns.impulse import Burn, prograde
from orrery.core.motion import StateVector


@dataclass(frozen=True)
class Transfer:
    first: float
    second: float
    duration: float

    @property
    def cost(self) -> float:
        return abs(self.first) + abs(self.second)


def plan(start: float, goal: float, mu: float) -> Transfer:
    """Between two radii in km."""
    axis = (start + goal) / 2.0
    leave = math.sqrt(mu * (2.0 / start - 1.0 / axis)) - math.sqrt(mu / start)
    arrive = math.sqrt(mu / goal) - math.sqrt(mu * (2.0 / goal - 1.0 / axis))
    return Transfer(leave, arrive, math.pi * math.sqrt(axis**3 / mu))


def departure(state: StateVector, goal: float, mu: float) -> Burn:
    """The first burn, from where the ship is now."""
    return prograde(state, plan(state.radius, goal, mu).first)
