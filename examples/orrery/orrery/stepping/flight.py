"""Many steps in a row."""

from collections.abc import Callable, Iterator

from orrery.core.motion import StateVector
from orrery.stepping.forces import Force

Step = Callable[[StateVector, Force, float], StateVector]


def fly(start: StateVector, force: Force, dt: float, step: Step) -> Iterator[StateVector]:
    """The start, then one motion a step, without end."""
    state = start
    while True:
        yield state
        state = step(state, force, dt)


def until(path: Iterator[StateVector], time: float) -> list[StateVector]:
    """The part of a path before a time."""
    kept = []
    for state in path:
        if state.time >= time:
            break
        kept.append(state)
    return kept
