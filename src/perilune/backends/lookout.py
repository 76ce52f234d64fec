"""Whether a model endpoint is there, and, where it was not at the start, what it says of its model then."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from perilune.backends.base import ModelEntry
from perilune.backends.endpoint import new_session
from perilune.backends.listing import Facts, list_models
from perilune.backends.retries import is_passing
from perilune.errors import BackendAuth, BackendError, BackendUnreachable

log = logging.getLogger(__name__)

LOOK_TIMEOUT_S = 5.0
LOOK_EVERY_S = 5.0
"""However often we are asked whether we are ready, the endpoint is not asked more often than this."""


class Lookout:
    def __init__(
        self, url: str, headers: dict[str, str], facts: Facts | None, learnt: Callable[[ModelEntry], None]
    ) -> None:
        """`facts` reads what the endpoint lists, where that is still to be learnt; `learnt` hears it."""
        self._url = url
        self._headers = headers
        self._facts = facts
        self._learnt = learnt
        self._turn = asyncio.Lock()
        self._looked = float("-inf")
        self._unready: BackendError | None = None

    @property
    def has_to_learn(self) -> bool:
        return self._facts is not None

    async def ready(self) -> None:
        """Raises BackendUnreachable or BackendAuth as a look at the endpoint found, now or a moment ago. Any
        other answer shows that it is there: an endpoint need not list its models."""
        async with self._turn:
            if time.monotonic() - self._looked >= LOOK_EVERY_S:
                self._unready = await self._look()
                self._looked = time.monotonic()
        if self._unready is not None:
            raise self._unready

    async def learn(self) -> None:
        """A look for the sake of what it tells; one at a time is enough."""
        if self._turn.locked():
            return
        try:
            await self.ready()
        except BackendError as error:
            log.debug("%s does not tell what it is: %s", self._url, error.message)

    async def _look(self) -> BackendError | None:
        async with new_session(LOOK_TIMEOUT_S) as session:
            try:
                items = await list_models(session, self._url, self._headers, LOOK_TIMEOUT_S)
            except (BackendUnreachable, BackendAuth) as error:
                return error
            except BackendError as error:  # it is there
                if not is_passing(error):
                    self._facts = None
                return None
        if items:  # one that is still loading may list none
            self._learn_from(items)
        return None

    def _learn_from(self, items: list[dict[str, Any]]) -> None:
        facts, self._facts = self._facts, None
        if facts is not None and (entry := facts(items)) is not None:
            log.info("%s tells what its model is: %d tokens of context", self._url, entry.context_length)
            self._learnt(entry)
