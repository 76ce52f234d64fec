"""Eclipses: who stands in whose shadow."""

import math

from orrery.core.constants import RADIUS
from orrery.core.motion import StateVector
from orrery.core.vectors import add, dot, norm, scale, sub, unit


def umbra_length(planet: StateVector, radius: float) -> float:
    """How far the full shadow of a planet reaches."""
    return radius * planet.radius / (RADIUS["sun"] - radius)


def in_shadow(moon: StateVector, planet: StateVector, radius: float) -> bool:
    """`moon` is about its planet, `planet` about the Sun."""
    away = unit(planet.position)
    behind = dot(moon.position, away)
    if behind <= 0.0:
        return False
    aside = norm(sub(moon.position, scale(away, behind)))
    return aside < radius * (1.0 - behind / umbra_length(planet, radius))


def sun_size(planet: StateVector, moon: StateVector) -> float:
    """Angle that the Sun spans in the moon's sky."""
    return 2.0 * math.asin(RADIUS["sun"] / norm(add(planet.position, moon.position)))
