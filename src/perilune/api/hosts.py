"""Under which names the server answers. No key is judged by the Host header; this is for whoever shares an
address with others, and against web pages that give their own name to a server on the reader's machine."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from perilune.api.edge import Edge
from perilune.api.metrics import HttpCounters
from perilune.errors import ConfigError

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
PROBED = frozenset({"/healthz", "/readyz"})
"""Asked by load balancers and schedulers, by address; they tell nothing."""
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]")
HOST = re.compile(rf"({NAME.pattern})\.?(:\d{{1,5}})?", re.IGNORECASE)


def names_of(setting: str) -> frozenset[str]:
    """Of `allowed_hosts`. Raises ConfigError for what is no name."""
    names = [one.strip().lower() for one in setting.split(",") if one.strip()]
    for one in names:
        if not NAME.fullmatch(one):
            raise ConfigError(
                f"{one!r} is no host", field="allowed_hosts", mend="write api.example.org, without a port"
            )
    return frozenset(names)


class KnownHosts:
    """Refuses requests for another host than those; `names` are in small letters."""

    def __init__(self, app: ASGIApp, names: Iterable[str], counters: HttpCounters) -> None:
        self._app = app
        self._names = frozenset(names)
        self._refusal = Edge(_refuse, counters)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        known = scope["type"] != "http" or scope["path"] in PROBED or host_of(scope) in self._names
        return (self._app if known else self._refusal)(scope, receive, send)


def host_of(scope: Scope) -> str:
    """The name in the Host header, in small letters and without a port; empty unless there is just one."""
    given = [value for name, value in scope["headers"] if name == b"host"]
    found = HOST.fullmatch(given[0].decode("latin-1")) if len(given) == 1 else None
    return found[1].lower() if found else ""


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(421, "this server does not answer under that Host (see allowed_hosts)")
