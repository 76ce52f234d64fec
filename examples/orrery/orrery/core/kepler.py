"""Kepler's equation, and a StateVector carried along its conic."""

import math

from orrery.core.motion import StateVector
from orrery.core.vectors import add, scale

TOLERANCE = 1e-12
TURNS = 60


def eccentric_anomaly(mean: float, eccentricity: float) -> float:
    """Solve M = E - e sin E for E, by Newton's method."""
    if not 0.0 <= eccentricity < 1.0:
        raise ValueError(f"eccentricity {eccentricity} is not that of an ellipse")
    mean = math.remainder(mean, math.tau)
    guess = mean if eccentricity < 0.8 else math.copysign(math.pi, mean)
    for _ in range(TURNS):
        error = guess - eccentricity * math.sin(guess) - mean
        step = error / (1.0 - eccentricity * math.cos(guess))
        guess -= step
        if abs(step) < TOLERANCE:
            break
    return guess


def propagate(state: StateVector, seconds: float, mu: float) -> StateVector:
    """The same bound orbit, some seconds later (Lagrange's f and g)."""
    axis = -mu / (2.0 * state.energy(mu))
    rate = math.sqrt(mu / axis**3)
    sigma = state.radius * state.radial_speed / math.sqrt(mu * axis)
    near = 1.0 - state.radius / axis
    turn = math.remainder(rate * seconds, math.tau)
    for _ in range(TURNS):
        sine, cosine = math.sin(turn), math.cos(turn)
        goal = math.remainder(rate * seconds, math.tau)
        error = turn - near * sine + sigma * (1.0 - cosine) - goal
        step = error / (1.0 - near * cosine + sigma * sine)
        turn -= step
        if abs(step) < TOLERANCE:
            break
    sine, cosine = math.sin(turn), math.cos(turn)
    later = axis * (1.0 - near * cosine + sigma * sine)
    f = 1.0 - axis / state.radius * (1.0 - cosine)
    g = (sigma * (1.0 - cosine) + state.radius / axis * sine) / rate
    fdot = -math.sqrt(mu * axis) * sine / (later * state.radius)
    gdot = 1.0 - axis / later * (1.0 - cosine)
    place = add(scale(state.position, f), scale(state.velocity, g))
    motion = add(scale(state.position, fdot), scale(state.velocity, gdot))
    return StateVector(place, motion, state.time + seconds)
