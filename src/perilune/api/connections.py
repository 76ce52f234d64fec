"""One HTTP connection, with the patience and the room that a stranger gets.

uvicorn's own, and besides: the head of a request has a size and a time, an answer that its client does not
read is given up, and there are only so many connections. Without a head's time, a few clients that send a
byte now and then would hold all of them.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

import httptools
import msgspec
from uvicorn._types import HTTPScope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from perilune.api.exchange import Exchange

log = logging.getLogger("perilune.api")

MAX_HEAD_BYTES = 16 * 1024
HEAD_S = 10.0
"""From the connection, or the head's first byte, to its end."""
IDLE_S = 30
"""Between two requests."""
TOO_MANY = "too many connections at once (close some, or try again soon)"
UNREAD_S = 60.0
"""How long a client may leave unread what no longer fits into the socket's buffer. Until it reads, nothing
more is taken from the model either."""


class HeadTooLarge(Exception):
    """Goes through the parser, which makes a fault of the client of it."""


@functools.lru_cache(maxsize=64)
def _parts_of(url: bytes) -> tuple[str, bytes, bytes]:
    """The path in plain, as it was sent, and the query; kept, for most requests have one of a few URLs."""
    parts = httptools.parse_url(url)
    path = parts.path.decode("ascii")
    return unquote(path) if "%" in path else path, parts.path, parts.query or b""


class Connection(HttpToolsProtocol):
    def __init__(self, *, most: int, **given: Any) -> None:
        super().__init__(**given)
        self._most = most
        self._in_head = True
        self._head_bytes = 0
        """Received since the head began; for the rest of one packet it counts too many."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._running: Exchange | None = None
        """The one that is answered now, or was last; `cycle` is the one whose request came last."""
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_since: float | None = None
        """None while a request is under way."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most:
            log.warning("more than %d connections: one was refused", self._most)
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "server_unavailable", TOO_MANY)
        else:
            self._head_timer = self.loop.call_later(HEAD_S, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._no_head_timer()
        self._no_unread_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.set()

    def data_received(self, data: bytes) -> None:
        self._idle_since = None
        if self._in_head:
            self._head_bytes += len(data)
        if self.transport.is_closing():
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse_what_is_not_http()
            return
        except httptools.HttpParserUpgrade:
            self._unsupported_upgrade_warning()
        if not self._in_head or (self.cycle is not None and not self.cycle.response_complete):
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_S, self._head_is_late)

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        if self._head_timer is not None:
            self._no_head_timer()
        self._in_head = False
        if self._head_bytes > MAX_HEAD_BYTES and self._size_of_head() > MAX_HEAD_BYTES:
            raise HeadTooLarge
        self._head_bytes = 0
        self._begin_exchange()

    def _begin_exchange(self) -> None:
        """As uvicorn does it, but for what we never ask it for: WebSockets, a root path, a log, a limit."""
        version = self.parser.get_http_version()
        path, raw_path, query = _parts_of(self.url)
        scope: HTTPScope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "method": self.parser.get_method().decode("ascii"),
            "root_path": "",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self.headers,
            "state": self.app_state.copy(),
        }
        before = self.cycle
        keep_alive = version != "1.0" and self.parser.should_keep_alive()
        exchange = self.cycle = Exchange(scope, self, keep_alive)
        if before is None or before.response_complete:
            self._start(exchange)
        else:  # a request that did not wait for the answer before it does so here
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))

    def _start(self, exchange: Exchange) -> None:
        self._running = exchange
        task = exchange.task = self.loop.create_task(exchange.run_asgi(self.app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def on_body(self, body: bytes) -> None:
        """As uvicorn does it, but for WebSockets."""
        exchange = self.cycle
        if not exchange.response_complete:
            exchange.body += body
            if len(exchange.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            exchange.message_event.set()

    def on_message_complete(self) -> None:
        """As uvicorn does it, but for WebSockets."""
        self._in_head = True
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        """As uvicorn does it, with one timer for all the pauses of a connection."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start(cast("Exchange", self.pipeline.pop()[0]))
            return
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_if_idle)

    def _look_if_idle(self) -> None:
        since, now = self._idle_since, self.loop.time()
        left = self.timeout_keep_alive if since is None else since + self.timeout_keep_alive - now
        if left > 0:
            self._idle_timer = self.loop.call_later(left, self._look_if_idle)
        elif not self.transport.is_closing():
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self.loop.call_later(UNREAD_S, self._give_up)

    def resume_writing(self) -> None:
        self._no_unread_timer()
        super().resume_writing()

    def _refuse_what_is_not_http(self) -> None:
        self.logger.warning("Invalid HTTP request received.")
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, "invalid_request_error", "this is not HTTP")

    def _no_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _no_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _head_is_late(self) -> None:
        self._head_timer = None
        self.transport.close()

    def _give_up(self) -> None:
        log.warning("a client read nothing for %d s: its connection is cut off", UNREAD_S)
        self.transport.abort()

    def _refuse_head(self) -> None:
        told = f"the request's headers are larger than {MAX_HEAD_BYTES} bytes (send less)"
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "invalid_request_error", told)

    def _refuse(self, status: HTTPStatus, kind: str, told: str) -> None:
        """Answered here, as there is no request that the app could answer."""
        body = msgspec.json.encode({"error": {"message": told, "type": kind}})
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
