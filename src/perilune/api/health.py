"""GET /healthz: the process lives. GET /readyz: the model behind it answers, so traffic may come."""

from __future__ import annotations

import asyncio
import time

from starlette.types import Receive, Scope, Send

from perilune.api.http import send_json
from perilune.backends.base import Backend
from perilune.backends.endpoint import auth_headers, base_url, new_session
from perilune.backends.listing import list_models
from perilune.errors import BackendAuth, BackendError, BackendUnreachable, PeriluneError
from perilune.settings import Settings

READY_TIMEOUT_S = 5.0
PROBE_EVERY_S = 5.0
"""However often we are asked, the endpoint is not asked more often than this."""


async def health(scope: Scope, receive: Receive, send: Send) -> None:
    await send_json(send, {"status": "ok"})


class Ready:
    """Open to all, so it says which kind of failure, and no more."""

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self._backend = backend
        self._settings = settings
        self._probed = float("-inf")
        self._found = ""
        self._probing = asyncio.Lock()

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
                return await self._endpoint_reason()
        except TimeoutError:
            return "timeout"
        except PeriluneError as error:
            return error.code

    async def _endpoint_reason(self) -> str:
        """What a look at the endpoint of `model_url` found, now or a moment ago."""
        if not self._settings.model_url:
            return ""
        async with self._probing:
            if time.monotonic() - self._probed >= PROBE_EVERY_S:
                self._found = await _probe(self._settings)
                self._probed = time.monotonic()
        return self._found


async def _probe(settings: Settings) -> str:
    """An endpoint need not have a list of models: any answer but a refused key shows that it is there."""
    url, headers = base_url(settings.model_url), auth_headers(settings.model_key)
    async with new_session(READY_TIMEOUT_S) as session:
        try:
            await list_models(session, url, headers, READY_TIMEOUT_S)
        except (BackendUnreachable, BackendAuth) as error:
            return error.code
        except BackendError:
            return ""
    return ""
