"""The six orbital elements, and their way to and from motion."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orrery.core.frames import tilt
from orrery.core.kepler import eccentric_anomaly
from orrery.core.motion import StateVector
from orrery.core.vectors import cross, dot, norm, scale, sub


@dataclass(frozen=True)
class Elements:
    """A bound orbit: axis in km, angles in radians."""

    axis: float
    eccentricity: float
    inclination: float = 0.0
    node: float = 0.0
    periapsis: float = 0.0
    anomaly: float = 0.0
    """Mean anomaly at time zero."""

    def period(self, mu: float) -> float:
        return math.tau * math.sqrt(self.axis**3 / mu)

    def at(self, time: float, mu: float) -> StateVector:
        """The motion at a time, in seconds since time zero."""
        rate = math.sqrt(mu / self.axis**3)
        angle = eccentric_anomaly(self.anomaly + rate * time, self.eccentricity)
        flat = math.sqrt(1.0 - self.eccentricity**2)
        sine, cosine = math.sin(angle), math.cos(angle)
        place = (self.axis * (cosine - self.eccentricity), self.axis * flat * sine, 0.0)
        quick = rate * self.axis / (1.0 - self.eccentricity * cosine)
        motion = (-quick * sine, quick * flat * cosine, 0.0)
        planar = StateVector(place, motion, time)
        return tilt(planar, self.inclination, self.node, self.periapsis)


def axis_of(state: StateVector, mu: float) -> float:
    """Semi-major axis; negative for a hyperbola."""
    return -mu / (2.0 * state.energy(mu))


def eccentricity_of(state: StateVector, mu: float) -> float:
    pull = scale(cross(state.velocity, state.momentum), 1.0 / mu)
    return norm(sub(pull, scale(state.position, 1.0 / state.radius)))


def inclination_of(state: StateVector) -> float:
    normal = state.momentum
    return math.acos(dot(normal, (0.0, 0.0, 1.0)) / norm(normal))
