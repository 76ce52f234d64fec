"""A backend that fails on purpose: for tests and for showing that a swarm survives its model.

    FaultyBackend(inner, FaultPlan(seed=7, error=0.1, cut=0.1, wrong_edit=0.05))

Which request meets which fault follows from its content and the plan's seed, never from the order of
calls. A request meets its fault `repeats` times and then passes, so that a retry can succeed; with
`repeats=0` it always fails, and the same content then behaves the same after a restart too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

import msgspec

from perilune.backends.base import Backend, ModelEntry, complete
from perilune.backends.scripted import events_of
from perilune.chat.messages import Event, Request, ToolCall
from perilune.chat.wire_errors import OVERLOADED
from perilune.errors import (
    BackendError,
    BackendInterrupted,
    BackendRateLimited,
    BackendUnreachable,
    ConfigError,
)

KINDS = ("error", "stall", "cut", "broken_json", "wrong_edit")


@dataclass(frozen=True)
class FaultPlan:
    """How often each fault happens: shares of requests, together at most 1."""

    seed: int = 0
    error: float = 0.0
    """Refused before the first byte: unreachable, rate limited or a server error."""
    stall: float = 0.0
    """Silent for `stall_s` before the first event, then as usual."""
    cut: float = 0.0
    """The stream ends before it is complete."""
    broken_json: float = 0.0
    """The arguments of the last tool call lose their end. Answers without a call pass."""
    wrong_edit: float = 0.0
    """The last string argument of the last tool call holds another string, one that a bound argument may
    hold where there is one: well-formed and wrong. Answers without such an argument pass."""
    stall_s: float = 30.0
    repeats: int = 1
    """How often the same request meets its fault; 0 means always."""

    def __post_init__(self) -> None:
        rates = [getattr(self, kind) for kind in KINDS]
        if min(rates) < 0 or sum(rates) > 1:
            raise ConfigError("the rates of a fault plan are shares that sum to at most 1", field="plan")

    def fault(self, request: Request) -> str | None:
        """The fault this request meets, one of KINDS; None for most."""
        draw = self.draw(request, "kind")
        for kind in KINDS:
            draw -= getattr(self, kind)
            if draw < 0:
                return kind
        return None

    def draw(self, request: Request, purpose: str) -> float:
        """A number in [0, 1) that follows from the request, the seed and what it is for."""
        digest = hashlib.blake2b(_content(request), digest_size=8, salt=purpose.encode()[:16])
        digest.update(self.seed.to_bytes(8, "little", signed=True))
        return int.from_bytes(digest.digest(), "little") / 2**64


Alteration = Callable[[ToolCall, Request, FaultPlan], ToolCall]


class FaultyBackend:
    """`inner`, with the faults of a plan."""

    def __init__(self, inner: Backend, plan: FaultPlan) -> None:
        self._inner = inner
        self._plan = plan
        self._met: dict[bytes, int] = {}

    async def models(self) -> tuple[ModelEntry, ...]:
        return await self._inner.models()

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        match self._next_fault(request):
            case "error":
                raise _error(self._plan.draw(request, "error"))
            case "stall":
                await asyncio.sleep(self._plan.stall_s)
                events = self._inner.stream(request)
            case "cut":
                events = self._cut(request)
            case "broken_json":
                events = self._altered(request, _broken)
            case "wrong_edit":
                events = self._altered(request, _wrong)
            case _:
                events = self._inner.stream(request)
        # Closing this stream must abort the inner call at once, not when it is collected.
        async with aclosing(cast(AsyncGenerator[Event, None], events)) as stream:
            async for event in stream:
                yield event

    async def ready(self) -> None:
        await self._inner.ready()

    async def count_tokens(self, request: Request) -> int | None:
        return await self._inner.count_tokens(request)

    async def close(self) -> None:
        await self._inner.close()

    def _next_fault(self, request: Request) -> str | None:
        kind = self._plan.fault(request)
        if kind is None or not self._plan.repeats:
            return kind
        key = hashlib.blake2b(_content(request), digest_size=16).digest()
        met = self._met.get(key, 0)
        self._met[key] = met + 1
        return kind if met < self._plan.repeats else None

    async def _cut(self, request: Request) -> AsyncIterator[Event]:
        """The first events of the answer, all but at least one."""
        events = events_of(await complete(self._inner, request))
        kept = int(self._plan.draw(request, "cut") * len(events))
        for event in events[:kept]:
            yield event
        raise BackendInterrupted(
            "the model's stream ended before it was complete", mend="injected fault; try again"
        )

    async def _altered(self, request: Request, alter: Alteration) -> AsyncIterator[Event]:
        completion = await complete(self._inner, request)
        calls = completion.message.tool_calls
        if calls:
            calls = (*calls[:-1], alter(calls[-1], request, self._plan))
            message = msgspec.structs.replace(completion.message, tool_calls=calls)
            completion = msgspec.structs.replace(completion, message=message)
        for event in events_of(completion):
            yield event


def _error(draw: float) -> BackendError:
    mend = "injected fault; try again"
    if draw < 1 / 3:
        return BackendUnreachable("the model's endpoint refused the connection", mend=mend)
    if draw < 2 / 3:
        return BackendRateLimited(f"{OVERLOADED}: a fault that was asked for", retry_after_s=0.0, mend=mend)
    return BackendError("the model's endpoint failed with HTTP 500", mend=mend)


def _broken(call: ToolCall, request: Request, plan: FaultPlan) -> ToolCall:
    """The call without the end of its arguments: never valid JSON."""
    kept = int(plan.draw(request, "broken") * (len(call.arguments) - 1))
    return msgspec.structs.replace(call, arguments=call.arguments[: max(kept, 1)])


def _wrong(call: ToolCall, request: Request, plan: FaultPlan) -> ToolCall:
    """The call with another string in its last string argument."""
    arguments = json.loads(call.arguments)
    names = [name for name, value in arguments.items() if isinstance(value, str)]
    if not names:
        return call
    right = arguments[names[-1]]
    others = [
        value
        for value in request.argument_choices.get(call.name, {}).get(names[-1], ())
        if value != right and value.isidentifier() == right.isidentifier()
    ]
    at = int(plan.draw(request, "wrong") * len(others))
    arguments[names[-1]] = others[at] if others else f"{right}_"
    return msgspec.structs.replace(call, arguments=msgspec.json.encode(arguments).decode())


def _content(request: Request) -> bytes:
    """What a model would see of the request, and the caller's seed."""
    seen = (request.model, request.messages, request.tools, request.seed, request.prompt_cache_key)
    return msgspec.msgpack.encode(seen)
