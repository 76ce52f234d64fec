"""Changing an orbit: every burn turns one StateVector into another."""

from orrery.burns.impulse import Burn

__all__ = ["Burn"]
