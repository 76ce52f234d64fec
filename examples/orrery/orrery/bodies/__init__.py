"""The Sun's planets; each module answers `at(time) -> StateVector`."""

from orrery.bodies.planet import Planet

__all__ = ["Planet"]
