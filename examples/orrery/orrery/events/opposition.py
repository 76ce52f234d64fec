"""When an outer planet stands opposite the Sun."""

from collections.abc import Iterator

from orrery.bodies import earth
from orrery.bodies.planet import Planet
from orrery.core.motion import StateVector
from orrery.events.search import crossings


def behind(viewer: StateVector, planet: StateVector) -> float:
    """Positive once the viewer has overtaken the planet."""
    v, p = viewer.position, planet.position
    return p[0] * v[1] - p[1] * v[0]


def oppositions(planet: Planet, start: float, end: float, step: float) -> Iterator[float]:
    def overtaking(viewer: StateVector) -> float:
        return behind(viewer, planet.at(viewer.time))

    for time in crossings(earth.at, overtaking, start, end, step):
        ahead, here = planet.at(time).position, earth.at(time).position
        if ahead[0] * here[0] + ahead[1] * here[1] > 0.0:
            yield time


def synodic_period(planet: Planet) -> float:
    """Mean time from one opposition to the next."""
    return 1.0 / abs(1.0 / earth.PLANET.year - 1.0 / planet.year)
