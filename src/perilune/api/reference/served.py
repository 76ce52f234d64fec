"""GET /openapi.json and GET /docs: made when they are first asked for, then kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from perilune.api.http import JSON, Headers
from perilune.api.reference.page import page, policy


class Reference:
    """The document of one door; `make` is asked for it once."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        self._make = make
        self._json = b""
        self._page = b""

    async def json(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._json = self._json or msgspec.json.encode(self._make())
        await _send(send, self._json, [(b"content-type", JSON)])

    async def html(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._page = self._page or page(self._make()).encode()
        headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", policy().encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]
        await _send(send, self._page, headers)


async def _send(send: Send, data: bytes, headers: Headers) -> None:
    headers = [*headers, (b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": data})
