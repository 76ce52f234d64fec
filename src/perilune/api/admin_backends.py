"""Acts of the admin door on backends: how they stand, and which of them take new calls."""

from __future__ import annotations

import time

import msgspec

from perilune.accounts import audit
from perilune.accounts.accounts import Accounts
from perilune.accounts.desk.act import Act, Acts, Nothing
from perilune.backends.base import Backend
from perilune.backends.members import Member
from perilune.backends.router import Router, members_of
from perilune.errors import NotFound


class OneBackend(msgspec.Struct, forbid_unknown_fields=True):
    backend: str
    """The name that its `[[backends]]` table gives it."""


def backend_acts(backend: Backend) -> Acts:
    """Bound to the backends of this process; `drain` and `enable` hold until it ends."""

    async def list_backends(accounts: Accounts, _: Nothing, actor: str) -> list[Member]:
        """Every backend, and whether calls go there"""
        return await members_of(backend)

    async def drain(accounts: Accounts, which: OneBackend, actor: str) -> list[Member]:
        """Send a backend no new calls; those under way end as they would"""
        return await switch(accounts, which.backend, actor, drained=True)

    async def enable(accounts: Accounts, which: OneBackend, actor: str) -> list[Member]:
        """Send a drained backend calls again"""
        return await switch(accounts, which.backend, actor, drained=False)

    async def switch(accounts: Accounts, name: str, actor: str, *, drained: bool) -> list[Member]:
        if not isinstance(backend, Router):
            raise NotFound(f"no backend {name!r}", field="backend")
        backend.drain(name, drained)
        act, now = f"backend.{'drain' if drained else 'enable'}", int(time.time() * 1000)
        await accounts.store.write(
            lambda connection: audit.record(connection, actor, act, {"backend": name}, now)
        )
        return [one for one in await backend.members() if one.name == name]

    return {
        "backend/list": Act(Nothing, list_backends, changes=False),
        "backend/drain": Act(OneBackend, drain, changes=True),
        "backend/enable": Act(OneBackend, enable, changes=True),
    }
