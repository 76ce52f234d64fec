"""Accelerations, as functions of the motion."""

import math
from collections.abc import Callable

from orrery.core.motion import StateVector
from orrery.core.vectors import Vec, add, scale

Force = Callable[[StateVector], Vec]
"""Acceleration in km/s^2."""


def gravity(mu: float) -> Force:
    def pull(state: StateVector) -> Vec:
        return scale(state.position, -mu / state.radius**3)

    return pull


def drag(surface: float, density: float, height: float, factor: float) -> Force:
    """Air that thins by 1/e with every `height` km above `surface`."""

    def brake(state: StateVector) -> Vec:
        air = density * math.exp((surface - state.radius) / height)
        return scale(state.velocity, -factor * air * state.speed)

    return brake


def together(*forces: Force) -> Force:
    def total(state: StateVector) -> Vec:
        result = (0.0, 0.0, 0.0)
        for force in forces:
            result = add(result, force(state))
        return result

    return total
