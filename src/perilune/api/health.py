"""GET /healthz: the process lives. GET /readyz: the model behind it answers, so traffic may come."""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope, Send

from perilune.api.http import send_json
from perilune.backends.base import Backend
from perilune.errors import PeriluneError

READY_TIMEOUT_S = 5.0


async def health(scope: Scope, receive: Receive, send: Send) -> None:
    await send_json(send, {"status": "ok"})


class Ready:
    """Open to all, so it says which kind of failure, and no more."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                entries = await self._backend.models()
        except TimeoutError:
            await send_json(send, {"status": "not ready", "reason": "timeout"}, 503)
        except PeriluneError as error:
            await send_json(send, {"status": "not ready", "reason": error.code}, 503)
        else:
            ready = bool(entries)
            reason = {"status": "ready"} if ready else {"status": "not ready", "reason": "no model"}
            await send_json(send, reason, 200 if ready else 503)
