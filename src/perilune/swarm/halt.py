"""Stopping a session so that it can go on later."""

from __future__ import annotations

import asyncio

from perilune.errors import PeriluneError, SwarmError


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

    @property
    def raised(self) -> bool:
        return self.error is not None

    def set(self, error: PeriluneError) -> None:
        """The first reason counts."""
        if self.error is None:
            self.error = error
            self._event.set()

    def check(self) -> None:
        if self.error is not None:
            raise Halted

    async def wait(self) -> None:
        await self._event.wait()

    async def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until the halt. Raises Halted then."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return
        raise Halted
