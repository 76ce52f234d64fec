"""Turning a motion from one set of axes to another."""

import math

from orrery.core.motion import StateVector
from orrery.core.vectors import Vec

OBLIQUITY = math.radians(23.439281)
"""Angle between the equator of the Earth and its orbit."""


def about_x(v: Vec, angle: float) -> Vec:
    sine, cosine = math.sin(angle), math.cos(angle)
    return (v[0], cosine * v[1] - sine * v[2], sine * v[1] + cosine * v[2])


def about_z(v: Vec, angle: float) -> Vec:
    sine, cosine = math.sin(angle), math.cos(angle)
    return (cosine * v[0] - sine * v[1], sine * v[0] + cosine * v[1], v[2])


def tilt(state: StateVector, inclination: float, node: float, periapsis: float) -> StateVector:
    """From the plane of the orbit to the plane of reference."""

    def turn(v: Vec) -> Vec:
        return about_z(about_x(about_z(v, periapsis), inclination), node)

    return StateVector(turn(state.position), turn(state.velocity), state.time)


def to_equator(state: StateVector) -> StateVector:
    """From the ecliptic to the equator of the Earth."""
    place = about_x(state.position, OBLIQUITY)
    motion = about_x(state.velocity, OBLIQUITY)
    return StateVector(place, motion, state.time)
