"""Reading a request's body and sending an answer, on ASGI messages directly."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from perilune.api.exchange import exchange_of
from perilune.errors import (
    BackendOutOfQuota,
    BackendRateLimited,
    InsufficientBalance,
    InvalidKey,
    LimitReached,
    PeriluneError,
)

MAX_BODY_BYTES = 100 * 1024 * 1024
"""The hosted API's limit."""
BODY_S = 300
"""How long a client may take to send its body."""
STALL_S = 30
"""How long between two pieces of it."""
DISCARD_BYTES = 1024**3
DISCARD_S = 30
JSON = b"application/json"
HEADERS = "perilune.headers"
"""Where a request's scope holds them by name, once somebody has asked."""
OVERLOADED_RETRY_S = 1.0
"""How long to wait for an overloaded endpoint that did not say."""
CLOSE = {"connection": "close"}
"""For refusals of a body that was not read: its rest would be taken for the next request."""

Headers = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client closed the connection before its answer was complete. Nobody is left to tell."""


def headers_of(scope: Scope) -> Mapping[bytes, bytes]:
    """The request's headers by their names in small letters; of several of one name the first."""
    known: dict[bytes, bytes] | None = scope.get(HEADERS)
    if known is None:
        known = scope[HEADERS] = dict(reversed(scope["headers"]))
    return known


def header(scope: Scope, name: bytes) -> str:
    """The first header of that (lower-case) name; empty when there is none."""
    return headers_of(scope).get(name, b"").decode("latin-1")


def read_json_body(scope: Scope, receive: Receive, limit: int = MAX_BODY_BYTES) -> Awaitable[bytes]:
    """`read_body` of a JSON body. Raises HTTPException for another type too."""
    if headers_of(scope).get(b"content-type") != JSON:
        kind = header(scope, b"content-type").partition(";")[0].strip().lower()
        if kind and kind != "application/json" and not kind.endswith("+json"):
            raise HTTPException(415, f"content-type: {kind} is not read here (send application/json)")
    return read_body(scope, receive, limit)


async def read_body(
    scope: Scope, receive: Receive, limit: int, too_large: HTTPException | None = None
) -> bytes:
    """The whole body. Raises `too_large` for one over the limit, HTTPException for one that is too slow."""
    headers = headers_of(scope)
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > limit:
        raise too_large or _too_large(limit)
    encoding = headers.get(b"content-encoding")
    if encoding and encoding.lower() != b"identity":
        # Else a few KB could hold many MB.
        raise HTTPException(415, "content-encoding: encoded bodies are not read here (send it plain)", CLOSE)
    exchange = exchange_of(scope)
    body = exchange.whole_body() if exchange is not None else None
    if body is not None:
        if len(body) > limit:
            raise too_large or _too_large(limit)
        return body
    try:
        async with asyncio.timeout(STALL_S) as patience:
            return await _read(receive, limit, too_large or _too_large(limit), patience)
    except TimeoutError:
        raise HTTPException(
            408, f"the body stood still for {STALL_S} s, or took {BODY_S} s (send it faster)", headers=CLOSE
        ) from None


async def discard_body(receive: Receive) -> None:
    """Read on for a while, keeping nothing: a client that only listens once it has sent all then gets to
    hear why it was refused, where a closed connection would tell it nothing."""
    left, more = DISCARD_BYTES, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            while more and left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)


async def _read(receive: Receive, limit: int, too_large: HTTPException, patience: asyncio.Timeout) -> bytes:
    """`patience` begins anew with each piece, up to BODY_S for all of them."""
    parts: list[bytes] = []
    now = asyncio.get_running_loop().time
    end = now() + BODY_S
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
        more = message.get("more_body", False)
        if more:
            patience.reschedule(min(now() + STALL_S, end))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than {limit} bytes (send less)", headers=CLOSE)


async def send_json(send: Send, body: object, status: int = 200, headers: Headers | None = None) -> None:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    fixed = [(b"content-type", JSON), (b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": status, "headers": fixed + (headers or [])})
    await send({"type": "http.response.body", "body": data})


def error_headers(error: PeriluneError) -> Headers:
    """What clients act upon: how long to wait, that waiting is pointless, how to sign in."""
    headers: Headers = []
    wait: float | None = getattr(error, "retry_after_s", None)
    used_up = isinstance(error, InsufficientBalance | BackendOutOfQuota)
    if wait is None and isinstance(error, BackendRateLimited) and not used_up:
        wait = OVERLOADED_RETRY_S
    if wait is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(wait))))
    exhausted = isinstance(error, LimitReached) and not error.passing
    if used_up or exhausted:
        headers.append((b"x-should-retry", b"false"))
    if isinstance(error, InvalidKey):
        headers.append((b"www-authenticate", b"Bearer"))
    return headers
