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
        reason = await self._reason()
        if reason:
            await send_json(send, {"status": "not ready", "reason": reason}, 503)
        else:
            await send_json(send, {"status": "ready"})

    async def _reason(self) -> str:
        """Why traffic should not come; empty when it may."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                if not await self._backend.models():
                    return "no model"
                await self._backend.ready()
        except TimeoutError:
            return "timeout"
        except PeriluneError as error:
            return error.code
        return ""
