"""The classical fourth-order method of Runge and Kutta."""

from orrery.core.motion import StateVector
from orrery.core.vectors import Vec, add, scale
from orrery.stepping.forces import Force


def step(state: StateVector, force: Force, dt: float) -> StateVector:
    v1, a1 = state.velocity, force(state)
    v2, a2 = _slope(state, v1, a1, force, dt / 2.0)
    v3, a3 = _slope(state, v2, a2, force, dt / 2.0)
    v4, a4 = _slope(state, v3, a3, force, dt)
    place = add(state.position, scale(_mean(v1, v2, v3, v4), dt))
    motion = add(state.velocity, scale(_mean(a1, a2, a3, a4), dt))
    return StateVector(place, motion, state.time + dt)


def _slope(state: StateVector, v: Vec, a: Vec, force: Force, dt: float) -> tuple[Vec, Vec]:
    place = add(state.position, scale(v, dt))
    motion = add(state.velocity, scale(a, dt))
    return motion, force(StateVector(place, motion, state.time + dt))


def _mean(first: Vec, second: Vec, third: Vec, fourth: Vec) -> Vec:
    middle = scale(add(second, third), 2.0)
    return scale(add(add(first, fourth), middle), 1.0 / 6.0)
