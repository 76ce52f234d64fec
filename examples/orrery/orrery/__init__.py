"""The solar system in motion: `orrery.StateVector` is where a body is and how it moves."""

from orrery.core.motion import StateVector

__all__ = ["StateVector"]
