"""A table for people."""

from collections.abc import Iterable

from orrery.core.epochs import moment
from orrery.core.motion import StateVector

HEAD = f"{'time (UTC)':<20}{'radius km':>16}{'speed km/s':>12}"


def table(path: Iterable[StateVector]) -> str:
    return "\n".join([HEAD, *(row(state) for state in path)])


def row(state: StateVector) -> str:
    when = moment(state.time).strftime("%Y-%m-%d %H:%M")
    return f"{when:<20}{state.radius:>16,.0f}{state.speed:>12.3f}"
