"""Server-sent events going out, with a comment into every long silence: proxies and clients take a connection
for dead on which nothing moves while a long prompt is read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

from starlette.types import Scope, Send

from perilune.api.exchange import exchange_of
from perilune.api.http import Headers

log = logging.getLogger(__name__)

QUIET_S = 15.0
COMMENT = b": still working\n\n"
HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


class Outbox:
    """What all streams write in this turn of the loop. It is written in a row after the work on all of it:
    that wakes those who read it less often than writing each part when it is ready."""

    def __init__(self) -> None:
        self._waiting: list[EventStream] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, stream: EventStream, loop: asyncio.AbstractEventLoop) -> None:
        if not self._waiting or loop is not self._loop:
            self._loop = loop
            loop.call_soon(self._write)
        self._waiting.append(stream)

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        for stream in waiting:
            try:
                stream.write_held()
            except Exception:
                log.exception("a part of a stream was not written")


class EventStream:
    """`with` it while events are waited for; `end` after that. It begins with what is written first,
    so until then, or the first silence, an error can still have a status of its own."""

    def __init__(self, scope: Scope, send: Send, more_headers: Callable[[], Headers], outbox: Outbox) -> None:
        """`more_headers` is asked when the stream begins."""
        self._outbox = outbox
        self._send = send
        self._more_headers = more_headers
        self._exchange = exchange_of(scope)
        self._held: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._comment: asyncio.Task[None] | None = None
        self.started = False

    def hold(self, data: bytes) -> bool:
        """Have it written with all that is held before the loop turns, so that what came together leaves
        together. False where it cannot be: then `write` it."""
        if self._exchange is None or not self.started or self._exchange.flow.write_paused:
            return False
        if not self._held:
            self._outbox.add(self, self._loop)
        self._held.append(data)
        return True

    async def write(self, data: bytes) -> None:
        self.write_held()
        self._since = self._loop.time()
        await self._begin()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        self.write_held()
        await self._begin()
        await self._send({"type": "http.response.body", "body": data})

    def __enter__(self) -> Self:
        self._timer = self._loop.call_later(QUIET_S, self._look)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._comment is not None:
            self._comment.cancel()

    def write_held(self) -> None:
        if self._held and self._exchange is not None:
            held, self._held = self._held, []
            self._since = self._loop.time()
            self._exchange.write(held[0] if len(held) == 1 else b"".join(held), True)

    async def _begin(self) -> None:
        if not self.started:
            self.started = True
            headers = [*HEADERS, *self._more_headers()]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    def _look(self) -> None:
        silence = self._loop.time() - self._since
        if silence >= QUIET_S and (self._comment is None or self._comment.done()):
            self._comment = self._loop.create_task(self.write(COMMENT))
            silence = 0.0
        self._timer = self._loop.call_later(max(QUIET_S - silence, 0.01), self._look)
