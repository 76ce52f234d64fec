"""Euler's method: here to show why the others exist."""

from orrery.core.motion import StateVector
from orrery.core.vectors import add, scale
from orrery.stepping.forces import Force


def step(state: StateVector, force: Force, dt: float) -> StateVector:
    place = add(state.position, scale(state.velocity, dt))
    motion = add(state.velocity, scale(force(state), dt))
    return StateVector(place, motion, state.time + dt)
