"""Which backend serves a request: by the model entries, never by a name written in code.

The router is itself a backend. It answers for every entry of its members, resolves aliases, and hands a
request on under the entry's own id.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import cast

import msgspec

from perilune.accounts.keys import Principal
from perilune.backends.base import Backend, ModelEntry
from perilune.backends.replicas import Replicas
from perilune.chat.messages import Event, Request
from perilune.errors import ConfigError, NotFound

SPELLINGS = {
    "kimi-k2.6": (
        "moonshot-v1-k2-6",
        "kimi-k2-6",
        "Kimi-K2.6",
        "moonshotai/kimi-k2.6",
        "moonshotai/Kimi-K2.6",
    )
}
"""Other names by which clients ask for a model that is served as the one on the left."""


class Router:
    """Several backends as one."""

    def __init__(self, backends: Sequence[Backend], *, serve_as: str = "") -> None:
        """`serve_as`, in all its spellings, is one more alias of the first backend's first model."""
        self._backends = tuple(backends)
        self._serve_as = (serve_as, *SPELLINGS.get(serve_as, ())) if serve_as else ()

    def serving(self, principal: Principal) -> Router:
        """The same backends for one caller: the rules of those that have some are applied."""
        view = copy.copy(self)
        view._backends = tuple(
            one.serving(principal) if isinstance(one, Replicas) else one for one in self._backends
        )
        return view

    async def models(self) -> tuple[ModelEntry, ...]:
        return tuple(entry for entry, _ in await self._routes())

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        entry, backend = await self._route(request.model)
        events = backend.stream(msgspec.structs.replace(request, model=entry.id))
        async with aclosing(cast(AsyncGenerator[Event, None], events)) as stream:
            async for event in stream:
                yield event

    async def ready(self) -> None:
        for backend in self._backends:
            await backend.ready()

    async def count_tokens(self, request: Request) -> int | None:
        entry, backend = await self._route(request.model)
        return await backend.count_tokens(msgspec.structs.replace(request, model=entry.id))

    async def close(self) -> None:
        results = await asyncio.gather(*(one.close() for one in self._backends), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _route(self, name: str) -> tuple[ModelEntry, Backend]:
        routes = await self._routes()
        entry = find_entry((entry for entry, _ in routes), name)
        return entry, next(backend for known, backend in routes if known is entry)

    async def _routes(self) -> list[tuple[ModelEntry, Backend]]:
        """Raises ConfigError when two backends claim one name."""
        routes = [(entry, backend) for backend in self._backends for entry in await backend.models()]
        if self._serve_as and routes:
            first, backend = routes[0]
            more = tuple(name for name in self._serve_as if name not in names_of(first))
            if more:
                routes[0] = (msgspec.structs.replace(first, aliases=first.aliases + more), backend)
        claimed: set[str] = set()
        for entry, _ in routes:
            if taken := claimed & names_of(entry):
                raise ConfigError(
                    f"two models answer to {sorted(taken)[0]!r}", field="serve_as", mend="choose another name"
                )
            claimed |= names_of(entry)
        return routes


def names_of(entry: ModelEntry) -> set[str]:
    return {entry.id, *entry.aliases}


def find_entry(entries: Iterable[ModelEntry], name: str) -> ModelEntry:
    """The model that answers to this name. Raises NotFound naming those there are."""
    known = tuple(entries)
    for entry in known:
        if name in names_of(entry):
            return entry
    served = ", ".join(entry.id for entry in known) or "none"
    raise NotFound(f"Not found the model {name} or Permission denied", mend=f"models served: {served}")
