"""Who waits for a write, and how they are told."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]
"""Reads and writes rows on the connection it is given, inside a transaction that it must neither commit nor
roll back. It may run twice: then the first time has left no trace."""


class Waiter:
    """One write on its way: the work, who waits for it, and what came of it."""

    __slots__ = ("error", "future", "loop", "result", "work")

    def __init__(
        self,
        work: Work[Any],
        future: asyncio.Future[Any] | Future[Any],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self.work = work
        self.future = future
        self.loop = loop
        self.result: Any = None
        self.error: BaseException | None = None

    def answer(self) -> None:
        """Wake the waiter. On its own loop's thread where it has one."""
        if self.future.done():
            return  # the waiter was cancelled; its write stands
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def answer_all(waiters: Sequence[Waiter]) -> None:
    """One wake-up per event loop, not per write."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Waiter]] = {}
    for waiter in waiters:
        if waiter.loop is None:
            waiter.answer()
        else:
            by_loop.setdefault(waiter.loop, []).append(waiter)
    for loop, mine in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there
            loop.call_soon_threadsafe(answer_here, mine)


def answer_here(waiters: Sequence[Waiter]) -> None:
    """On the thread of their loop."""
    for waiter in waiters:
        waiter.answer()
