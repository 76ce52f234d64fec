"""One row of a table of routes, and the app that is made of such a table."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from perilune.accounts.accounts import Accounts
from perilune.api.auth import Guarded
from perilune.api.edge import Edge, http_problem
from perilune.api.metrics import HttpCounters
from perilune.api.strangers import Strangers


@dataclass(frozen=True)
class Door:
    """One row of the table."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    needs: Literal["chat", "admin", "nothing"]
    """The scope that a key must have. There is no default: every route says whom it lets in."""
    endpoint: ASGIApp


def app_of(doors: Iterable[Door], accounts: Accounts, http: HttpCounters) -> ASGIApp:
    strangers = Strangers()
    table = {(door.method, door.path): _behind(door, accounts, strangers) for door in doors}
    app = Starlette(
        routes=[Route(path, _Named(app, path), methods=[method]) for (method, path), app in table.items()],
        middleware=[Middleware(Edge, counters=http)],
        exception_handlers={HTTPException: http_problem},
    )
    # A redirect would be built from the Host header, which the client chooses.
    app.router.redirect_slashes = False
    exact: dict[tuple[str, str], ASGIApp] = {
        key: Edge(app, counters=http) for key, app in table.items() if "{" not in key[1]
    }
    return _ShortWay(exact, app)


def _behind(door: Door, accounts: Accounts, strangers: Strangers) -> ASGIApp:
    open_to_all = door.needs == "nothing"
    return door.endpoint if open_to_all else Guarded(door.endpoint, accounts, door.needs, strangers)


class _ShortWay:
    """Straight to the row of a request whose method and path are those of the table, letter for letter; by
    way of Starlette for all others. What Starlette does there costs as much as all the rest of a row.

    As other layers that wait for nothing, it gives back what the next one is awaited by: a coroutine of its
    own would be gone through each time that the request goes on."""

    def __init__(self, exact: Mapping[tuple[str, str], ASGIApp], others: ASGIApp) -> None:
        self._exact = exact
        self._others = others

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        row = self._exact.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if row is None:
            return self._others(scope, receive, send)
        scope["perilune.route"] = scope["path"]
        return row(scope, receive, send)


class _Named:
    """Tells which row of the table a request matched. An object, for Starlette then calls it as ASGI, where
    it would call a function as a request handler."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self._app = app
        self._path = path

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        scope["perilune.route"] = self._path
        return self._app(scope, receive, send)
