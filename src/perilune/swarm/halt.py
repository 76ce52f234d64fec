"""Stopping a session so that it can go on later."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from contextlib import contextmanager

from perilune.errors import PeriluneError, StorageFull, StoreError, SwarmError


class Halted(Exception):
    """Unwinds one agent's loop after the session was halted; never leaves the swarm."""


class Interrupted(SwarmError):
    """Somebody asked the session to stop."""

    code = "interrupted"
    exit_code = 130


class Halt:
    """Raised once, seen by all: no agent begins another model call; what is under way ends and is settled."""

    def __init__(self) -> None:
        self.error: PeriluneError | None = None
        self._event = asyncio.Event()
        self._wakes: list[asyncio.Event] = []

    def wake(self, event: asyncio.Event) -> None:
        """Set this event at the halt too, so that whoever waits for it looks again."""
        self._wakes.append(event)

    def set(self, error: PeriluneError) -> None:
        """The first reason counts."""
        if self.error is None:
            self.error = error
            for event in (self._event, *self._wakes):
                event.set()

    def check(self) -> None:
        if self.error is not None:
            raise Halted

    async def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until the halt. Raises Halted then."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return
        raise Halted


@contextmanager
def halting(halt: Halt) -> Iterator[None]:
    """Whatever goes wrong within stops the session: what can be named resumably, as Halted. A defect of ours
    is raised as it is, and the others stop all the same, so that nobody waits for what never comes."""
    try:
        yield
    except Halted:
        raise
    except PeriluneError as error:
        halt.set(error)
        raise Halted from error
    except OSError as error:
        halt.set(_disk_trouble(error))
        raise Halted from error
    except Exception as error:
        halt.set(SwarmError(f"a defect: {error!r}", mend="report it, then resume"))
        raise


def _disk_trouble(error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("no space left for workspaces", mend="free some disk space, then resume")
    return StoreError(f"a workspace cannot be used: {error}", mend="mend that, then resume")
