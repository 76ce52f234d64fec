"""How much of a disc is lit."""

import math

from orrery.core.motion import StateVector
from orrery.core.vectors import angle_between, scale, sub


def phase_angle(body: StateVector, viewer: StateVector) -> float:
    """Angle Sun - body - viewer; zero when the disc is full."""
    to_sun = scale(body.position, -1.0)
    return angle_between(to_sun, sub(viewer.position, body.position))


def lit_share(body: StateVector, viewer: StateVector) -> float:
    return (1.0 + math.cos(phase_angle(body, viewer))) / 2.0
