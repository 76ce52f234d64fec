"""Moons, each as a StateVector about its planet."""

from orrery.moons.satellite import Satellite

__all__ = ["Satellite"]
