"""The mathematics that everything else rests on."""

from orrery.core.elements import Elements
from orrery.core.motion import StateVector

__all__ = ["Elements", "StateVector"]
