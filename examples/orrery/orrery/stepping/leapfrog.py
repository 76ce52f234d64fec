"""Leapfrog: half a kick, a drift, half a kick. Keeps the energy."""

from orrery.core.motion import StateVector
from orrery.core.vectors import add, scale
from orrery.stepping.forces import Force


def kick(state: StateVector, force: Force, dt: float) -> StateVector:
    motion = add(state.velocity, scale(force(state), dt))
    return StateVector(state.position, motion, state.time)


def step(state: StateVector, force: Force, dt: float) -> StateVector:
    half = kick(state, force, dt / 2.0)
    return kick(half.drift(dt), force, dt / 2.0)
