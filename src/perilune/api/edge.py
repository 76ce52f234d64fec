"""The outermost layer: gives every request an id, and turns every error into JSON of the official shape."""

from __future__ import annotations

import asyncio
import copy
import logging
import re
import time
from collections.abc import Awaitable
from itertools import repeat

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perilune.accounts.request_ids import new_request_id
from perilune.api.access_log import access_log
from perilune.api.http import ClientGone, error_headers, send_json
from perilune.api.metrics import HttpCounters
from perilune.chat.wire import encode_error
from perilune.errors import BackendError, PeriluneError

log = logging.getLogger("perilune.api")

ID_HEADERS = (b"x-request-id", b"msh-request-id", b"request-id", b"x-trace-id")
"""Each client library looks for another one."""
CLIENT_CLOSED = 499
"""Only in the log: nobody is left to read it."""
ADDRESS = re.compile(r"https?://[^\s()]+?(?=[:,]?(?:\s|\)|$))|\('[^']*', \d+\)")
HOST = re.compile(r"there is no host \S+")
"""URLs, pairs of host and port, and hosts: as messages about endpoints write them."""
HTTP_TYPES = {404: "resource_not_found_error", 405: "invalid_request_error"}


class Edge:
    def __init__(self, app: ASGIApp, counters: HttpCounters) -> None:
        self._app = app
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_request_id()
        scope["perilune.request_id"] = request_id
        began = time.perf_counter()
        status = 0

        def send_with_id(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                limits = scope.get("perilune.limits")
                message["headers"] = [
                    *message.get("headers", ()),
                    *zip(ID_HEADERS, repeat(request_id.encode())),
                    *(limits() if limits else ()),
                ]
            return send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientGone:
            status = CLIENT_CLOSED
        except asyncio.CancelledError:  # only the server's end cancels; this task ends here
            log.warning("%s %s was cut off: the server stops", scope["method"], _path(scope))
            if not status:
                await send_json(send_with_id, encode_error(_stopping()), 503)
        except HTTPException as refusal:
            if not status:
                response = await http_problem(HttpRequest(scope), refusal)
                await response(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001  the request's edge: the client gets an error, the log the trace
            problem = told(error, f"{scope['method']} {_path(scope)}")
            # Once half an answer is out, its unfinished body tells the client that it is not whole.
            if not status:
                await send_json(
                    send_with_id, encode_error(problem), problem.http_status, error_headers(problem)
                )
        took = time.perf_counter() - began
        self._counters.answered(scope, status, took)
        access_log.answered(f"{scope['method']} {_path(scope)} {status} {took * 1000:.1f} ms {request_id}")


def _path(scope: Scope) -> str:
    """As it was sent, percent signs and all: a decoded path could forge lines of the log."""
    raw: bytes = scope["raw_path"]
    return raw.decode("latin-1")


def request_id_of(scope: Scope) -> str:
    """The id that the answer's headers, the log and the ledger's row share."""
    request_id: str = scope["perilune.request_id"]
    return request_id


def told(error: Exception, what: str) -> PeriluneError:
    """The error as a client is told it. What is no PeriluneError is our defect: its trace goes to the log.
    Where the models run is the operator's business: the log says it, the client is not told."""
    if isinstance(error, PeriluneError):
        if error.http_status >= 500:
            log.warning("%s failed: %s", what, error)
        return _without_addresses(error) if isinstance(error, BackendError) else error
    log.error("%s failed", what, exc_info=error)
    return PeriluneError("something went wrong here", mend="the server's log says what")


def _without_addresses(error: BackendError) -> BackendError:
    shown = copy.copy(error)
    shown.message = HOST.sub("its host is not known", ADDRESS.sub("the endpoint", error.message))
    shown.mend = ADDRESS.sub("of the endpoint", error.mend) if error.mend else error.mend
    return shown


def _stopping() -> PeriluneError:
    error = PeriluneError("the server is stopping", mend="try again in a moment")
    error.http_status = 503
    return error


async def http_problem(request: HttpRequest, problem: Exception) -> Response:
    """No such route, wrong method, too large, wrong type: what HTTP itself refuses."""
    assert isinstance(problem, HTTPException)
    # Not the URL's path: that is made with the Host header, which the client chooses.
    path = request.scope["path"]
    allowed = ", ".join(_allowed(request)) if problem.status_code == 405 else ""
    texts = {
        404: f"no such route: {path} (docs/api.md lists what is served)",
        405: f"{request.method} is not allowed on {path} (use {allowed})",
    }
    error = PeriluneError(texts.get(problem.status_code, problem.detail))
    error.http_status = problem.status_code
    error.code = HTTP_TYPES.get(problem.status_code, "invalid_request_error")
    headers = dict(problem.headers or {})
    if allowed:
        headers["allow"] = allowed
    return Response(encode_error(error), problem.status_code, headers, media_type="application/json")


def _allowed(request: HttpRequest) -> list[str]:
    """The methods of all routes of this path; the router knows only the first one."""
    routes = [one for one in request.app.routes if one.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for one in routes for method in one.methods})
