"""The one place where a running session changes: every event is applied and written down here.

    recorder.post(event)            applied now, on disk a little later
    await recorder.record(event)    the same, and all that came before it is on disk when it returns

An effect may follow only a `record` of its intent. What cannot be lost anyway (an answer that the next
intent will carry to the disk) is posted, so a turn of an agent waits for few syncs. One task writes
whatever has gathered while the last commit was under way.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from perilune.errors import StoreError
from perilune.swarm.events import Entry, Event
from perilune.swarm.journal import Appender
from perilune.swarm.state import SessionState, apply


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Recorder:
    """Owns a session's state while it runs. Use as an async context."""

    def __init__(
        self, journal: Appender, state: SessionState, clock: Callable[[], int] = wall_clock_ms
    ) -> None:
        self.state = state
        self._journal = journal
        self._clock = clock
        self._pending: list[Entry] = []
        self._durable = state.seq
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._work = asyncio.Event()
        self._failure: BaseException | None = None
        self._writer: asyncio.Task[None] | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        self._writer = asyncio.create_task(self._write(), name="journal writer")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left. A failure to write was raised at whoever waited for it."""
        self._closing = True
        self._work.set()
        if self._writer is not None:
            await self._writer
        if self._failure is not None and kind is None:
            raise self._failure

    def post(self, *events: Event) -> None:
        """Apply events and have them written. Raises what the journal raised, once it has failed."""
        if self._failure is not None:
            raise self._failure
        for event in events:
            entry = Entry(self.state.seq + 1, self._clock(), event)
            self.state = apply(self.state, entry)
            self._pending.append(entry)
        self._work.set()

    async def record(self, *events: Event) -> None:
        """Apply events; when it returns, they and all before them are on disk. Raises StoreError: then the
        state is ahead of the journal and the session has to end."""
        self.post(*events)
        if self._durable >= self.state.seq:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((self.state.seq, future))
        await future

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            if self._pending and not await self._commit():
                return
            if self._closing and not self._pending:
                return

    async def _commit(self) -> bool:
        batch, self._pending = self._pending, []
        try:
            await self._journal.append(batch)
        except BaseException as error:  # noqa: BLE001  whatever it was, all who wait must hear of it
            self._fail(error)
            return False
        self._durable = batch[-1].seq
        while self._waiters and self._waiters[0][0] <= self._durable:
            _, future = self._waiters.popleft()
            if not future.done():
                future.set_result(None)
        return True

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            error = StoreError("the journal's writer was cancelled", mend="resume the session")
        self._failure = error
        while self._waiters:
            _, future = self._waiters.popleft()
            if not future.done():
                future.set_exception(error)
