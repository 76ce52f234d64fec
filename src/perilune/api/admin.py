"""The admin door: a listener of its own, on loopback only, for keys, accounts, ledger, audit and backend.

    POST /admin/ACT     the acts of accounts/desk and on backends, their fields as a JSON object
    GET  /admin/ACT     those that change nothing, with their fields left at what they are by default
    GET  /admin/backend/models    the model entries in full
    GET  /admin/backend/ready     whether the model behind answers
    GET  /metrics
    GET  /openapi.json            all this for machines

Every route needs a key with the scope admin, and a Host that is this machine's own. Acts run in a thread:
they wait for the disk.
"""

from __future__ import annotations

import asyncio
import inspect

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from perilune.accounts.accounts import Accounts
from perilune.accounts.desk.act import Acts, perform
from perilune.accounts.desk.acts import ACTS
from perilune.api.admin_backends import backend_acts
from perilune.api.auth import principal_of
from perilune.api.doors import Door, app_of
from perilune.api.health import Ready
from perilune.api.hosts import LOOPBACK, KnownHosts
from perilune.api.http import read_json_body, send_json
from perilune.api.metrics import HttpCounters, Metrics
from perilune.api.reference.document import admin_document
from perilune.api.reference.served import Reference
from perilune.backends.base import Backend

MAX_BODY_BYTES = 64 * 1024


def admin_doors(backend: Backend, accounts: Accounts, http: HttpCounters) -> tuple[Door, ...]:
    """All that the admin door serves."""
    all_acts = admin_acts(backend)
    acts = [Door("POST", f"/admin/{name}", "admin", AdminAct(name, all_acts, accounts)) for name in all_acts]
    reads = [
        Door("GET", f"/admin/{name}", "admin", AdminAct(name, all_acts, accounts))
        for name, act in all_acts.items()
        if not act.changes
    ]
    table: list[Door] = []
    reference = Reference(lambda: admin_document(table, all_acts))
    table += (
        *acts,
        *reads,
        Door("GET", "/admin/backend/models", "admin", BackendModels(backend)),
        Door("GET", "/admin/backend/ready", "admin", Ready(backend)),
        Door("GET", "/metrics", "admin", Metrics(http, accounts, backend)),
        Door("GET", "/openapi.json", "admin", reference.json),
    )
    return tuple(table)


def admin_acts(backend: Backend) -> Acts:
    return {**ACTS, **backend_acts(backend)}


def build_admin_app(backend: Backend, accounts: Accounts, http: HttpCounters) -> ASGIApp:
    return KnownHosts(app_of(admin_doors(backend, accounts, http), accounts, http), LOOPBACK, http)


class AdminAct:
    def __init__(self, name: str, acts: Acts, accounts: Accounts) -> None:
        self._name = name
        self._acts = acts
        self._accounts = accounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = principal_of(scope)
        body = b""
        if scope["method"] == "POST":
            body = await read_json_body(scope, receive, MAX_BODY_BYTES)
        actor = f"key {principal.key_id} ({principal.key_name})"
        result = await asyncio.to_thread(perform, self._acts, self._name, body, self._accounts, actor)
        if inspect.isawaitable(result):  # it acts on what lives in this event loop
            result = await result
        await send_json(send, msgspec.json.encode(result))


class BackendModels:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, msgspec.json.encode(await self._backend.models()))
