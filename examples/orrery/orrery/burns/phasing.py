"""Catching up with something on the same circle."""

import math

from orrery.burns.impulse import Burn, prograde
from orrery.core.motion import StateVector
from orrery.core.vectors import angle_between, cross


def lead(chaser: StateVector, target: StateVector) -> float:
    """Angle by which the target is ahead, from 0 to a full turn."""
    angle = angle_between(chaser.position, target.position)
    ahead = cross(chaser.position, target.position)[2] >= 0.0
    return angle if ahead else math.tau - angle


def catch_up(chaser: StateVector, angle: float, laps: int, mu: float) -> Burn:
    """A burn onto a smaller ellipse that closes the angle in some laps."""
    if laps < 1:
        raise ValueError("at least one lap is needed")
    period = math.tau * math.sqrt(chaser.radius**3 / mu)
    shorter = period * (1.0 - angle / (math.tau * laps))
    axis = (mu * (shorter / math.tau) ** 2) ** (1.0 / 3.0)
    speed = math.sqrt(mu * (2.0 / chaser.radius - 1.0 / axis))
    return prograde(chaser, speed - chaser.speed)
