"""Who may live and who waits: places for sub-agents, and one first call per kind of them.

Sub-agents of one kind begin with the same tools and instructions, so the kind's first call in this process
goes ahead alone and the others find its prompt in the cache, instead of all paying for it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Admission:
    """At most `limit` live sub-agents; the others wait in the order in which they came."""

    def __init__(self, limit: int) -> None:
        self._places = asyncio.Semaphore(limit)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        async with self._places:
            yield


class FirstCalls:
    """Lets one agent of a kind make its first model call before the others."""

    def __init__(self) -> None:
        self._done: dict[str, asyncio.Event] = {}

    @asynccontextmanager
    async def turn(self, kind: str) -> AsyncIterator[None]:
        """Wait until the first call of this kind has ended, however; pass at once if this is it."""
        first = self._done.get(kind)
        if first is None:
            mine = self._done[kind] = asyncio.Event()
            try:
                yield
            finally:
                mine.set()
            return
        await first.wait()
        yield
