"""One row of a table of routes, and the app that is made of such a table."""

from __future__ import annotations

from collections.abc import Iterable
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


@dataclass(frozen=True)
class Door:
    """One row of the table."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    needs: Literal["chat", "admin", "nothing"]
    """The scope that a key must have. There is no default: every route says whom it lets in."""
    endpoint: ASGIApp


def app_of(doors: Iterable[Door], accounts: Accounts, http: HttpCounters) -> ASGIApp:
    app = Starlette(
        routes=[_route(door, accounts) for door in doors],
        middleware=[Middleware(Edge, counters=http)],
        exception_handlers={HTTPException: http_problem},
    )
    # A redirect would be built from the Host header, which the client chooses.
    app.router.redirect_slashes = False
    return app


def _route(door: Door, accounts: Accounts) -> Route:
    open_to_all = door.needs == "nothing"
    app = door.endpoint if open_to_all else Guarded(door.endpoint, accounts, door.needs)
    return Route(door.path, _Named(app, door.path), methods=[door.method])


class _Named:
    """Tells which row of the table a request matched. An object, for Starlette then calls it as ASGI, where
    it would call a function as a request handler."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self._app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["perilune.route"] = self._path
        await self._app(scope, receive, send)
