"""What all moons share."""

from __future__ import annotations

from dataclasses import dataclass

from orrery.bodies.planet import Planet
from orrery.core.elements import Elements
from orrery.core.motion import StateVector
from orrery.core.vectors import add


@dataclass(frozen=True)
class Satellite:
    name: str
    planet: Planet
    radius: float
    orbit: Elements

    def at(self, time: float) -> StateVector:
        """About its planet."""
        return self.orbit.at(time, self.planet.mu)

    def about_sun(self, time: float) -> StateVector:
        moon, planet = self.at(time), self.planet.at(time)
        place = add(moon.position, planet.position)
        return StateVector(place, add(moon.velocity, planet.velocity), time)

    @property
    def month(self) -> float:
        return self.orbit.period(self.planet.mu)
