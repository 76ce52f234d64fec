"""Brief writes, gathered by the rounds of an event loop.

Those of one round are committed together at its end. Where a loop has had one a round for a while, the first
of a round is committed at once: nobody is there to share a commit with, and the round's end is far away.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

from perilune.store.waiter import Waiter

QUIET_ROUNDS = 4
Take = Callable[[Sequence[Waiter]], None]


class Rounds:
    """Of one loop at a time, and of one thread for good."""

    def __init__(self, commit: Take, late: Take) -> None:
        """`commit` is given those of one round, on the loop's thread; `late` those of a loop that was closed
        before its round ended."""
        self._commit = commit
        self._late = late
        self._waiting: list[Waiter] = []
        self._lock = threading.Lock()
        """`rest` may be asked for by any thread."""
        self._in_round = 0
        """How many the present round has had."""
        self._quiet = 0
        """How many of the last rounds had only one."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def take_from(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether writes of this loop, which runs, are taken."""
        if self._loop is not loop:
            if self._thread not in (0, threading.get_ident()):
                return False
            self._thread, self._loop = threading.get_ident(), loop
            self._in_round = 0
            self._late(self.rest())
        return True

    def add(self, waiter: Waiter) -> None:
        """Of the loop that was taken last."""
        assert self._loop is not None, "take_from comes first"
        self._in_round += 1
        if self._in_round == 1:
            self._loop.call_soon(self._end)
        if self._in_round == 1 and self._quiet >= QUIET_ROUNDS:
            self._commit((waiter,))
        else:
            with self._lock:
                self._waiting.append(waiter)

    def rest(self) -> list[Waiter]:
        """Those that wait for the end of their round; they do so no longer."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        return waiting

    def _end(self) -> None:
        self._quiet = self._quiet + 1 if self._in_round == 1 else 0
        self._in_round = 0
        if waiters := self.rest():
            self._commit(waiters)
