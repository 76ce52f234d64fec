"""Which backend serves a request: by the model entries, never by a name written in code.

The router is itself a backend. It answers for every entry of its members, resolves aliases, and hands a
request on under the entry's own id.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import Self

import msgspec

from perilune.accounts.keys import Principal
from perilune.backends.base import Backend, ModelEntry
from perilune.backends.bursts import bursts_of
from perilune.backends.members import Member
from perilune.backends.replicas import Replicas
from perilune.chat.messages import Event, Request
from perilune.errors import ConfigError, NotFound, PeriluneError

SPELLINGS = {
    "kimi-k2.6": (
        "moonshot-v1-k2-6",
        "kimi-k2-6",
        "Kimi-K2.6",
        "moonshotai/kimi-k2.6",
        "moonshotai/Kimi-K2.6",
    )
}
"""Other names by which clients ask for the model on the left: who answers to one of them answers to all."""


class Router:
    """Several backends as one."""

    def __init__(self, backends: Sequence[Backend], *, serve_as: str = "") -> None:
        """`serve_as` is one more alias of the first backend's first model."""
        self._backends = tuple(backends)
        self._has_rules = any(isinstance(one, Replicas) for one in self._backends)
        self._serve_as = serve_as
        self._known: list[tuple[ModelEntry, ...]] = []
        """What each backend served last; the two below are made of it."""
        self._entries: tuple[ModelEntry, ...] = ()
        self._routes: dict[str, tuple[ModelEntry, int]] = {}
        """By each name of an entry: the entry, and the place of its backend."""

    def serving(self, principal: Principal) -> Router:
        """The same backends for one caller: the rules of those that have some are applied."""
        if not self._has_rules:
            return self
        view = copy.copy(self)
        view._backends = tuple(
            one.serving(principal) if isinstance(one, Replicas) else one for one in self._backends
        )
        return view

    async def models(self) -> tuple[ModelEntry, ...]:
        return (await self._current())._entries

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        _, backend, routed = await self.route(request)
        async with aclosing(bursts_of(backend, routed)) as bursts:
            async for burst in bursts:
                for event in burst:
                    yield event

    async def route(self, request: Request) -> tuple[ModelEntry, Backend, Request]:
        """The model that answers, its backend, and the request under its own name. Raises NotFound."""
        route = (await self._current())._routes.get(request.model)
        if route is None:
            raise _not_served(self._entries, request.model)
        entry, place = route
        if request.model != entry.id:
            request = msgspec.structs.replace(request, model=entry.id)
        return entry, self._backends[place], request

    async def members(self) -> list[Member]:
        """Every backend, as operators see it."""
        found: list[Member] = []
        for backend in self._backends:
            found += backend.members() if isinstance(backend, Replicas) else await _as_members(backend)
        return found

    def drain(self, name: str, drained: bool) -> None:
        """Have the backend of that name take no new calls, or take them again; those under way go on.

        Raises NotFound."""
        fleet = [one for one in self._backends if isinstance(one, Replicas)]
        if not any(one.drain(name, drained) for one in fleet):
            mend = (
                "`perilune backends list` shows them" if fleet else "only [[backends]] tables can be drained"
            )
            raise NotFound(f"no backend {name!r} in a [[backends]] table", field="backend", mend=mend)

    async def ready(self) -> None:
        for backend in self._backends:
            await backend.ready()

    async def count_tokens(self, request: Request) -> int | None:
        _, backend, routed = await self.route(request)
        return await backend.count_tokens(routed)

    async def close(self) -> None:
        results = await asyncio.gather(*(one.close() for one in self._backends), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _current(self) -> Self:
        """Itself, after a look at what the backends serve now. Raises ConfigError when two claim one name."""
        found = []
        for one in self._backends:  # a comprehension that awaits would be a coroutine of its own
            found.append(await one.models())
        if found != self._known:
            named = self._named([(entry, place) for place, one in enumerate(found) for entry in one])
            self._entries = tuple(entry for entry, _ in named)
            self._routes = {name: route for route in named for name in names_of(route[0])}
            self._known = found
        return self

    def _named(self, routes: list[tuple[ModelEntry, int]]) -> list[tuple[ModelEntry, int]]:
        """The same with the name that `serve_as` gave, and other spellings. Raises ConfigError where a name
        has two claims."""
        if self._serve_as and routes:
            first, place = routes[0]
            routes = [(_with_aliases(first, (self._serve_as,)), place), *routes[1:]]
        claimed: set[str] = set()
        for entry, _ in routes:
            if taken := claimed & names_of(entry):
                raise ConfigError(
                    f"two models answer to {sorted(taken)[0]!r}", field="serve_as", mend="choose another name"
                )
            claimed |= names_of(entry)
        more = _other_spellings([entry for entry, _ in routes])
        return [(_with_aliases(entry, more.get(entry.id, ())), place) for entry, place in routes]


async def members_of(backend: Backend) -> list[Member]:
    """What stands behind this backend, as operators see it."""
    return await backend.members() if isinstance(backend, Router) else await _as_members(backend)


async def _as_members(backend: Backend) -> list[Member]:
    try:
        entries = await backend.models()
    except PeriluneError as error:
        return [Member(name="model", model="", kind="", breaker="open", error=error.message)]
    return [Member(name=entry.backend, model=entry.id, kind=entry.backend) for entry in entries]


def names_of(entry: ModelEntry) -> set[str]:
    return {entry.id, *entry.aliases}


def _with_aliases(entry: ModelEntry, names: Iterable[str]) -> ModelEntry:
    """The entry, or one with those of the names that it does not have yet."""
    more = tuple(name for name in names if name not in names_of(entry))
    return msgspec.structs.replace(entry, aliases=entry.aliases + more) if more else entry


def _other_spellings(entries: Sequence[ModelEntry]) -> dict[str, tuple[str, ...]]:
    """Entry's id -> names it answers to besides. Where several go by spellings of one name, only the one that
    has the name itself gets the rest, and what another goes by is never taken from it."""
    claimed = {name for entry in entries for name in names_of(entry)}
    found: dict[str, tuple[str, ...]] = {}
    for name, spellings in SPELLINGS.items():
        holders = [entry for entry in entries if names_of(entry) & {name, *spellings}]
        if len(holders) > 1:
            holders = [entry for entry in holders if name in names_of(entry)]
        for entry in holders:
            found[entry.id] = tuple(one for one in (name, *spellings) if one not in claimed)
    return found


def _spoken_names(entry: ModelEntry) -> list[str]:
    """Its names without the mere other spellings of one of them."""
    spelt = {other for name in names_of(entry) for other in SPELLINGS.get(name, ())}
    return [entry.id, *(name for name in entry.aliases if name not in spelt)]


def find_entry(entries: Iterable[ModelEntry], name: str) -> ModelEntry:
    """The model that answers to this name. Raises NotFound naming those there are."""
    known = tuple(entries)
    for entry in known:
        if name == entry.id or name in entry.aliases:
            return entry
    raise _not_served(known, name)


def _not_served(entries: Iterable[ModelEntry], name: str) -> NotFound:
    served = ", ".join(name for entry in entries for name in _spoken_names(entry)) or "none"
    return NotFound(f"Not found the model {name} or Permission denied", mend=f"models served: {served}")
