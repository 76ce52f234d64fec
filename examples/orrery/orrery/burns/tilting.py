"""Turning the plane of an orbit."""

import math

from orrery.burns.impulse import Burn
from orrery.core.motion import StateVector
from orrery.core.vectors import add, cross, dot, scale, sub, unit


def turn(state: StateVector, angle: float) -> Burn:
    """Turn the velocity about the line to the centre."""
    axis = unit(state.position)
    along = scale(axis, dot(axis, state.velocity))
    flat = sub(state.velocity, along)
    aside = cross(axis, flat)
    turned = add(scale(flat, math.cos(angle)), scale(aside, math.sin(angle)))
    return Burn(sub(add(along, turned), state.velocity))


def cheapest(states: list[StateVector]) -> StateVector:
    """Where turning costs least: the slowest point."""
    return min(states, key=lambda state: state.speed)
