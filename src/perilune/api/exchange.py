"""One request and its answer on a connection.

uvicorn's own, where it does the same with less: head and first bytes of an answer leave in one write, and who
wants to know that the client has gone is called, where others need a task that waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from starlette.types import Message, Scope
from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

KEY = "perilune.exchange"
"""Where a request's scope holds its Exchange. Servers other than ours put none there."""
BODILESS = frozenset({204, 304})


class _Nobody:
    """In the place of who waited for news."""

    def set(self) -> None:
        """There is nobody to tell."""


NOBODY = cast(asyncio.Event, _Nobody())


class Exchange(RequestResponseCycle):
    """It is its own `message_event` too: the connection `set`s it when there is news."""

    def __init__(self, scope: HTTPScope, connection: HttpToolsProtocol, keep_alive: bool) -> None:
        """What uvicorn's own sets, but for its log of requests."""
        self.scope = scope
        self.transport = connection.transport
        self.flow = connection.flow
        self.logger = connection.logger
        self.default_headers = connection.server_state.default_headers
        self.message_event = cast("asyncio.Event", self)
        self.on_response = connection.on_response_complete
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = connection.expect_100_continue
        self.body = bytearray()
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self.chunked_encoding = None
        cast("Scope", scope)[KEY] = self
        self._news = False
        self.task: asyncio.Task[None] | None = None
        """Its request's, once it has its turn."""
        self._waiter: asyncio.Future[None] | None = None
        self._on_gone: Callable[[], None] | None = None
        self._head = b""
        """Not sent yet: it leaves with what comes first after it."""
        self._left = 0
        """Bytes that an answer of known length still owes."""

    def whole_body(self) -> bytes | None:
        """The body, where all of it has come; mostly it comes with its head. None where it is still to be
        received piece by piece."""
        if self.more_body or not self._news or self.disconnected or self.waiting_for_100_continue:
            return None
        if self.flow.read_paused:
            self.flow.resume_reading()
        return self._take_body()

    def when_gone(self, call: Callable[[], None] | None) -> None:
        """Have it called once when the client has closed the connection; None: no longer."""
        self._on_gone = call
        if self.disconnected:
            self.set()
        elif call is not None and self.flow.read_paused:
            self.flow.resume_reading()  # else nobody would hear of the end

    def set(self) -> None:
        """There is news: a piece of the body, its end, the connection's end, the answer's."""
        self._news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.disconnected and self._on_gone is not None:
            call, self._on_gone = self._on_gone, None
            call()

    async def receive(self) -> Any:
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            self.flow.resume_reading()
            if not self._news:
                await self._wait()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self._take_body(), "more_body": self.more_body}

    def _take_body(self) -> bytes:
        body, self.body, self._news = bytes(self.body), bytearray(), False
        return body

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def send(self, message: Any) -> None:
        """Raises RuntimeError for messages that do not come in their order or make no HTTP."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.response_started:
            self._begin(message)
        elif kind == "http.response.body" and self.response_started and not self.response_complete:
            self.write(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"{kind} cannot come now")

    def _begin(self, message: Message) -> None:
        status: int = message["status"]
        headers = [*self.default_headers, *message.get("headers", ())]
        known = dict(headers)
        if b"content-length" in known:
            self._left, self.chunked_encoding = int(known[b"content-length"]), False
        if known.get(b"connection", b"").lower() == b"close":
            self.keep_alive = False
        elif not self.keep_alive:
            headers.append((b"connection", b"close"))
        if self.chunked_encoding is None:
            self.chunked_encoding = status not in BODILESS and self.scope["method"] != "HEAD"
            if self.chunked_encoding:
                headers.append((b"transfer-encoding", b"chunked"))
        lines = b"\r\n".join([*map(b": ".join, headers), b"\r\n"])
        # One that holds the end of a line would add headers, or an answer, of somebody else's making.
        if len(lines) - len(lines.translate(None, b"\r\n\0")) != 2 * (len(headers) + 1):
            raise RuntimeError("a header of the answer holds a control character")
        self.response_started = True
        self.waiting_for_100_continue = False
        self._head = STATUS_LINE[status] + lines

    def write(self, body: bytes, more: bool) -> None:
        """The next part of an answer that has begun; for who has seen that `flow` takes it."""
        if self.disconnected:
            return
        if self.scope["method"] == "HEAD":
            self._left, data = 0, b""
        elif self.chunked_encoding:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                data += b"0\r\n\r\n"
        else:
            data = body
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the answer is not as long as its content-length says")
        if self._head:
            data, self._head = self._head + data, b""
        self.transport.write(data)
        if not more:
            self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self.set()
        # Without the circles through itself it is gone when its answer is, and so is a body that nobody read.
        self.body, self.message_event = bytearray(), NOBODY
        cast("Scope", self.scope).pop(KEY, None)
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


def exchange_of(scope: Scope) -> Exchange | None:
    """None where another server carries the app."""
    found: Exchange | None = scope.get(KEY)
    return found
