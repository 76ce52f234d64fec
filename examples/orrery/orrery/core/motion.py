"""Where a body is and how it moves, at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from orrery.core.vectors import Vec, add, cross, dot, norm, scale, sub


@dataclass(frozen=True)
class StateVector:
    """Position (km) and velocity (km/s) about a centre."""

    position: Vec
    velocity: Vec
    time: float = 0.0

    @property
    def radius(self) -> float:
        return norm(self.position)

    @property
    def speed(self) -> float:
        return norm(self.velocity)

    @property
    def momentum(self) -> Vec:
        """Specific angular momentum, normal to the orbit."""
        return cross(self.position, self.velocity)

    @property
    def radial_speed(self) -> float:
        """Positive while the body moves away from the centre."""
        return dot(self.position, self.velocity) / self.radius

    def energy(self, mu: float) -> float:
        """Specific orbital energy; negative when bound."""
        return self.speed**2 / 2.0 - mu / self.radius

    def seen_from(self, other: StateVector) -> StateVector:
        """This motion relative to another one."""
        position = sub(self.position, other.position)
        velocity = sub(self.velocity, other.velocity)
        return StateVector(position, velocity, self.time)

    def drift(self, seconds: float) -> StateVector:
        """Straight on, as if nothing pulled."""
        moved = add(self.position, scale(self.velocity, seconds))
        return StateVector(moved, self.velocity, self.time + seconds)
