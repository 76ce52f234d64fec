"""Comma-separated values, there and back."""

import csv
import io
from collections.abc import Iterable

from orrery.core.motion import StateVector

FIELDS = ("time", "x", "y", "z", "vx", "vy", "vz")


def dump(path: Iterable[StateVector]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    for state in path:
        writer.writerow([state.time, *state.position, *state.velocity])
    return text.getvalue()


def load(text: str) -> list[StateVector]:
    rows = csv.reader(io.StringIO(text))
    if tuple(next(rows, ())) != FIELDS:
        raise ValueError(f"the first line must be {','.join(FIELDS)}")
    return [_state([float(cell) for cell in row]) for row in rows]


def _state(cells: list[float]) -> StateVector:
    time, x, y, z, vx, vy, vz = cells
    return StateVector((x, y, z), (vx, vy, vz), time)
