"""What an observer sees of a StateVector."""

from orrery.sky.direction import Direction

__all__ = ["Direction"]
