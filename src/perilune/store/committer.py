"""Transactions on the one connection of a store that writes."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from perilune.errors import StoreError
from perilune.store.daybook import Daybook, Mark
from perilune.store.sqlite import is_busy, is_storage_failure, translate
from perilune.store.waiter import Waiter

BUSY_PAUSE_S = 0.01


class Busy(sqlite3.OperationalError):
    """Another process, which is none of ours, writes."""


class Committer:
    """For one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.daybook: Daybook | None = None
        self.behind: StoreError | None = None
        """Why the tables did not take what was entered."""
        self.changes = 0
        """How many groups were committed that have written something else than what was entered."""
        self._connection = connection
        self._path = path

    def commit(self, waiters: Sequence[Waiter], patience_s: float) -> None:
        """Post what was entered, run the works and commit all that together. Waits so long for another
        process that writes. What fails is told to the waiters, and to `behind`."""
        execute = self._connection.execute
        try:
            mark, is_other = self._begin(patience_s)
            if not self._run_together(waiters):
                mark, is_other = self._begin(patience_s)
                for waiter in waiters:
                    self._run_one(waiter)
            execute("COMMIT")
        except sqlite3.Error as error:
            self._fail(waiters, error)
            return
        self.behind = None
        self.changes += is_other or any(waiter.work is not no_work for waiter in waiters)
        if self.daybook is not None and mark is not None:
            self.daybook.posted(mark)

    def _fail(self, waiters: Sequence[Waiter], error: sqlite3.Error) -> None:
        for waiter in waiters:
            waiter.error = waiter.error or translate(error, self._path)
        if self.daybook is not None and not self.daybook.is_posted and not isinstance(error, Busy):
            self.behind = translate(error, self._path)
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _begin(self, patience_s: float) -> tuple[Mark | None, bool]:
        """Begin a transaction with posting what was entered: how far, and whether the tables now say
        something else. Raises sqlite3.Error."""
        patience = time.monotonic() + patience_s
        while not self._begin_at_once():
            if time.monotonic() > patience:
                raise Busy(f"another process has been writing for {patience_s:g} s")
            time.sleep(BUSY_PAUSE_S)
        waiting = [] if self.daybook is None else self.daybook.waiting()
        if self.daybook is None or not waiting:
            return None, False
        mark = waiting[-1][0]
        is_other = self.daybook.posting.post(self._connection, [entry for _, entry in waiting])
        self._connection.execute("UPDATE daybook SET file = ?, byte = ?", mark)
        return mark, is_other

    def _begin_at_once(self) -> bool:
        """False while another process writes."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            return False
        return True

    def _run_together(self, waiters: Sequence[Waiter]) -> bool:
        """Run them all, as they mostly can. False where one raises: then none has run, and what was begun has
        ended."""
        connection = self._connection
        try:
            for waiter in waiters:
                waiter.result = waiter.work(connection)
        except Exception as error:
            if not connection.in_transaction or is_storage_failure(error):
                raise _sqlite_error(error) from error
            connection.execute("ROLLBACK")
            return False
        return True

    def _run_one(self, waiter: Waiter) -> None:
        """Run one work, which fails by itself, in a savepoint of its own. Raises sqlite3.Error when the whole
        group is lost."""
        execute = self._connection.execute
        execute("SAVEPOINT one")
        try:
            waiter.result = waiter.work(self._connection)
        except Exception as error:
            if not self._connection.in_transaction or is_storage_failure(error):
                raise _sqlite_error(error) from error
            waiter.error = error  # it belongs to this waiter alone
            execute("ROLLBACK TO one")
        execute("RELEASE one")


def no_work(connection: sqlite3.Connection) -> None:
    """Of a write that only waits until what came before it is safe."""


def _sqlite_error(error: Exception) -> sqlite3.Error:
    """The error itself, or one that says that a work ended the group's transaction."""
    if isinstance(error, sqlite3.Error):
        return error
    return sqlite3.OperationalError(f"a write ended the shared transaction: {error!r}")
