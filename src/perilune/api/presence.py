"""Ends the work on an answer when the client that waits for it goes away."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive, Scope

from perilune.api.exchange import exchange_of
from perilune.api.http import ClientGone


class ClientPresent:
    """`with ClientPresent(scope, receive)`: cancels the block and raises ClientGone when the client
    leaves.

    Enter it in the request's own task, after the body was read. Leave it before the last byte is sent: from
    then on the server reports the connection as gone."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._exchange = exchange_of(scope)
        self._receive = receive
        self._left = False
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        exchange = self._exchange
        task = exchange.task if exchange is not None else asyncio.current_task()
        assert task is not None, "only inside a task"
        self._task = task
        if exchange is None:
            self._watcher = asyncio.create_task(self._watch())
        elif exchange.disconnected:
            raise ClientGone
        else:
            exchange.when_gone(self._gone)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._exchange is not None:
            self._exchange.when_gone(None)
        if self._watcher is not None:
            self._watcher.cancel()
        if self._left and self._task.uncancel() == 0 and (kind is None or kind is asyncio.CancelledError):
            raise ClientGone from error

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone()

    def _gone(self) -> None:
        self._left = True
        self._task.cancel()
