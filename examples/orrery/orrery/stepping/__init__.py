"""Integrators: each carries a StateVector over one small step."""

from orrery.stepping.forces import Force, gravity

__all__ = ["Force", "gravity"]
