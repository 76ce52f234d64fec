"""Events that came together, kept together: one step of each layer for all of them, not one for each.

A backend may have `bursts(request)` beside `stream(request)`: the same events in the same order, each burst
what arrived at once and never empty. Nothing waits for a burst to become larger.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import TypeAlias, cast

from perilune.backends.base import Backend
from perilune.chat.messages import Event, Request

Bursts: TypeAlias = AsyncGenerator[Sequence[Event], None]


def bursts_of(backend: Backend, request: Request) -> Bursts:
    """The backend's own, or each event of its stream by itself. Closing them closes the stream."""
    own: Callable[[Request], Bursts] | None = getattr(backend, "bursts", None)
    return own(request) if own is not None else alone(backend.stream(request))


async def alone(events: AsyncIterator[Event]) -> Bursts:
    try:
        async for event in events:
            yield (event,)
    finally:
        await cast(AsyncGenerator[Event, None], events).aclose()


async def each(bursts: Bursts) -> AsyncGenerator[Event, None]:
    """The events one by one. Closing it closes the bursts."""
    try:
        async for burst in bursts:
            for event in burst:
                yield event
    finally:
        await bursts.aclose()
