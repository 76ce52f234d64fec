"""What a fuzz target is, and what an error has to be that refuses an input."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.mutation import Mutator

from perilune.errors import PeriluneError

LONGEST_MESSAGE = 2000


@dataclass(frozen=True)
class Target:
    """`check` raises for a finding. `make` fills a folder once, before the first input."""

    name: str
    seeds: Callable[[], list[bytes]]
    mutate: Mutator
    check: Callable[[Path, bytes], None]
    make: Callable[[Path], object] = field(default=lambda _: None)


def refused(error: PeriluneError, *names: str) -> None:
    """The error says in one line that can be printed what is wrong, where, and what to do."""
    line = str(error)
    assert "\n" not in line and len(line) < LONGEST_MESSAGE, line[:LONGEST_MESSAGE]
    line.encode()
    assert error.field or any(name in line for name in names), line
    assert error.mend, line


@contextlib.contextmanager
def allowed(kind: type[PeriluneError], *names: str) -> Iterator[None]:
    try:
        yield
    except kind as error:
        refused(error, *names)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
