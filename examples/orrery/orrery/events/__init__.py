"""Finding moments: an event is a sign that changes along a StateVector's path."""

from orrery.events.search import crossings

__all__ = ["crossings"]
