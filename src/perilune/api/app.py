"""The HTTP door: the table of routes, and the app made of it.

A request passes Edge (id, errors), the route that matches, Guarded (key and scope), the endpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from perilune.accounts.accounts import Accounts
from perilune.api.auth import Guarded
from perilune.api.chat_completions import ChatCompletions
from perilune.api.edge import Edge, http_problem
from perilune.api.health import Ready, health
from perilune.api.models import Catalogue, ListModels, OneModel
from perilune.backends.base import Backend
from perilune.settings import Settings


@dataclass(frozen=True)
class Door:
    """One row of the table."""

    method: Literal["GET", "POST"]
    path: str
    needs: Literal["chat", "admin", "nothing"]
    """The scope that a key must have. There is no default: every route says whom it lets in."""
    endpoint: ASGIApp


def doors(settings: Settings, backend: Backend, accounts: Accounts) -> tuple[Door, ...]:
    """All that is served."""
    catalogue = Catalogue(backend, settings.serve_as)
    chat = ChatCompletions(backend, accounts, catalogue)
    return (
        Door("POST", "/v1/chat/completions", "chat", chat),
        Door("GET", "/v1/models", "chat", ListModels(catalogue)),
        Door("GET", "/v1/models/{id:path}", "chat", OneModel(catalogue)),
        Door("GET", "/healthz", "nothing", health),
        Door("GET", "/readyz", "nothing", Ready(backend)),
    )


def build_app(settings: Settings, backend: Backend, accounts: Accounts) -> ASGIApp:
    """The app. It owns neither backend nor accounts: whoever opened them closes them."""
    routes = [_route(door, accounts) for door in doors(settings, backend, accounts)]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Edge)],
        exception_handlers={HTTPException: http_problem},
    )
    # A redirect would be built from the Host header, which the client chooses.
    app.router.redirect_slashes = False
    return app


def _route(door: Door, accounts: Accounts) -> Route:
    open_to_all = door.needs == "nothing"
    app = _Raw(door.endpoint) if open_to_all else Guarded(door.endpoint, accounts, door.needs)
    return Route(door.path, app, methods=[door.method])


class _Raw:
    """Makes a function an object, which Starlette then calls as ASGI instead of as a request handler."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
