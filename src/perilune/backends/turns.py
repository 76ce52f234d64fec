"""One call after the other, for endpoints that break off an answer when another request comes.

llama-cpp-python's server does that, for any request, so a look at whether it is there would end the answer
that shows that it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

from perilune.backends.base import Backend, ModelEntry
from perilune.chat.messages import Event, Request


class InTurn:
    """The same backend, asked for one thing at a time. Who waits and goes away loses nothing but its turn."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._turn = asyncio.Lock()

    async def models(self) -> tuple[ModelEntry, ...]:
        return await self._backend.models()

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        async with self._turn:
            async with aclosing(cast(AsyncGenerator[Event, None], self._backend.stream(request))) as events:
                async for event in events:
                    yield event

    async def ready(self) -> None:
        """Raises what the backend raises; nothing while an answer is under way."""
        if not self._turn.locked():
            async with self._turn:
                await self._backend.ready()

    async def count_tokens(self, request: Request) -> int | None:
        return await self._backend.count_tokens(request)

    async def close(self) -> None:
        await self._backend.close()
