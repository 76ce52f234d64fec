"""A small HTTP/1.1 client for one URL without TLS, where aiohttp costs as much as all else of a call.

It has the few names of aiohttp's session, response and stream that `upstream` uses, and raises aiohttp's
errors, so that one takes the place of the other. An answer that arrived whole gives its connection back; one
that is closed before that closes its connection, so that the work stops at the endpoint.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httptools

IDLE_S = 15.0
"""How long an unused connection is kept; many servers close theirs soon after."""
HIGH_WATER = 1 << 20
"""Bytes that wait to be read before the endpoint is made to wait."""
MOST_HEADER_BYTES = 65536


class PlainSession:
    """Connections to one URL, as many as there are calls."""

    def __init__(self, url: str, headers: Mapping[str, str], *, connect_s: float, silence_s: float) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or 80
        path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        lines = [f"POST {path} HTTP/1.1", f"Host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._head = "\r\n".join([*lines, "Content-Length: "]).encode("latin-1")
        self._connect_s = connect_s
        self._silence_s = silence_s
        self._idle: deque[_Connection] = deque()
        self._all: set[_Connection] = set()

    async def post(self, body: bytes) -> PlainResponse:
        """The answer, once its headers have arrived. Raises aiohttp.ClientError, TimeoutError, OSError."""
        connection = self._idle_one() or await self._connect()
        response = connection.ask(b"%b%d\r\n\r\n%b" % (self._head, len(body), body), self._silence_s)
        try:
            while not response.status:
                await response.next_change()
        except BaseException:
            response.close()
            raise
        return response

    async def close(self) -> None:
        for connection in tuple(self._all):
            connection.drop()
            await connection.lost.wait()

    def give_back(self, connection: _Connection) -> None:
        connection.since = time.monotonic()
        self._idle.append(connection)
        while self._idle[0].since + IDLE_S < connection.since:
            self._idle.popleft().drop()

    def forget(self, connection: _Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _idle_one(self) -> _Connection | None:
        """The one that was used last."""
        oldest = time.monotonic() - IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.since >= oldest and connection.is_open:
                return connection
            connection.drop()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), self._host, self._port
                )
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"no connection within {self._connect_s:g} s") from error
        self._all.add(connection)
        return connection


class PlainResponse:
    """One answer, while it arrives."""

    def __init__(self, connection: _Connection, silence_s: float, pieces: list[bytes]) -> None:
        """`pieces`: where the connection puts what arrives of the body."""
        self.status = 0
        self.reason = ""
        self.headers = _Headers()
        self.content = self
        self._connection = connection
        self.silence_s = silence_s
        self.heard_at = time.monotonic()
        self._waiter: asyncio.Future[None] | None = None
        self._pieces = pieces
        self._ended = False
        self._error: Exception | None = None

    @property
    def content_type(self) -> str:
        return _kind(self.headers.values.get(b"content-type") or b"application/octet-stream")

    def next_change(self) -> asyncio.Future[None]:
        """Done when anything has happened. Raises what ended the answer."""
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    async def readany(self) -> bytes:
        """What has arrived of the body, at least one byte; b"" at its end."""
        pieces = self._pieces
        while not pieces:
            if self._ended:
                return b""
            await self.next_change()
            pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if self._connection.is_paused:
            self._connection.resume()
        return data

    async def iter_any(self) -> AsyncIterator[bytes]:
        while data := await self.readany():
            yield data

    def at_eof(self) -> bool:
        return self._ended and not self._pieces

    def close(self) -> None:
        """Nothing to do once the whole answer has arrived."""
        if not self._ended:
            self._connection.drop()

    # ---- from the connection

    def is_overdue(self, now: float) -> bool:
        """Whether the endpoint was silent for too long. What waits to be read shows that it is not the slow
        one."""
        return not self._pieces and self.heard_at + self.silence_s <= now

    def keep(self) -> None:
        """The whole body is there: from here on the connection's list is another answer's."""
        kept = self._pieces[:]
        self._pieces.clear()
        self._pieces = kept

    def end(self, error: Exception | None = None) -> None:
        self._ended = error is None
        self._error = self._error or error
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@functools.lru_cache(maxsize=64)
def _kind(content_type: bytes) -> str:
    return content_type.decode("latin-1").partition(";")[0].strip().lower()


class _Headers:
    """By lower-case names; found under any spelling. Few are looked at, so none is decoded before that."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def get(self, name: str, default: str | None = None) -> str | None:
        value = self.values.get(name.lower().encode("latin-1"))
        return default if value is None else value.decode("latin-1")


class _Connection(asyncio.Protocol):
    """One connection, for one answer at a time."""

    def __init__(self, session: PlainSession) -> None:
        self.since = 0.0
        """When it was last given back."""
        self.lost = asyncio.Event()
        self._session = session
        self._transport: Any = None
        self._parser: Any = None
        self._response: PlainResponse | None = None
        self._header_bytes = 0
        self._pieces: list[bytes] = []
        """Of the body of the answer that is arriving: what nobody has read yet."""
        self._waiting = 0
        """Bytes that came since all of it had been read."""
        self.on_body = self._pieces.append  # without a step of ours: every event of a stream passes here
        self.is_paused = False
        self._watch: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def ask(self, request: bytes, silence_s: float) -> PlainResponse:
        self._header_bytes = 0
        self._pieces.clear()
        response = self._response = PlainResponse(self, silence_s, self._pieces)
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(silence_s, self._look)
        self._transport.write(request)
        return response

    def _look(self) -> None:
        """One timer for all answers of the connection, set anew only when it has run down."""
        response, now = self._response, time.monotonic()
        if response is None:
            self._watch = None
        elif response.is_overdue(now):
            response.end(TimeoutError(f"silent for {response.silence_s:g} s"))
            self.drop()
        else:
            left = response.heard_at + response.silence_s - now
            self._watch = asyncio.get_running_loop().call_later(max(left, 0.05), self._look)

    def drop(self) -> None:
        self._session.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        if not self.is_paused:
            self.is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self.is_paused:
            self.is_paused = False
            self._transport.resume_reading()

    # ---- asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:  # nobody asked
            self.drop()
            return
        response.heard_at = time.monotonic()
        # With the framing, so a little more than the pieces have.
        self._waiting = len(data) + (self._waiting if self._pieces else 0)
        failure = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            failure = aiohttp.ClientError(f"not HTTP: {error}")
        if self._waiting > HIGH_WATER and self._response is not None:
            self.pause()
        if failure is not None:
            self._fail(response, failure)
        response.wake()  # once for all that came together

    def connection_lost(self, error: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self.lost.set()
        self._session.forget(self)
        response, self._response = self._response, None
        if response is None:
            return
        if response.status and not {b"content-length", b"transfer-encoding"} & response.headers.values.keys():
            response.end(aiohttp.ClientPayloadError("cut") if error else None)
        elif response.status:
            response.end(aiohttp.ClientPayloadError("cut"))
        else:
            response.end(aiohttp.ServerDisconnectedError())

    def _fail(self, response: PlainResponse, error: Exception) -> None:
        self._response = None
        response.end(aiohttp.ClientPayloadError(str(error)) if response.status else error)
        self.drop()

    # ---- from the parser

    def on_message_begin(self) -> None:
        if self._response is None:  # more than was asked for; what it is will not be waited for
            self.drop()

    def on_status(self, text: bytes) -> None:
        if self._response is not None:
            self._response.reason = text.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MOST_HEADER_BYTES:
            raise httptools.HttpParserError("endless headers")
        if self._response is not None:
            self._response.headers.values[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._response is not None and self._parser.get_status_code() >= 200:
            self._response.status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        response = self._response
        if response is None or not response.status:  # an interim answer, such as 100
            return
        response.keep()
        self._response = None
        self.resume()
        response.end()
        if self._parser.should_keep_alive() and self.is_open:
            self._session.give_back(self)
        else:
            self.drop()
