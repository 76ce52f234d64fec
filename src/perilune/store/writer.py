"""A small durable database: one SQLite file, one writer thread, group commit.

Every `write` is answered only after the commit that holds it: synced to disk, or, where the store was opened
so, written to the log, which a killed process cannot lose and which is synced a moment later. All writes that
arrive while a commit is under way share the next one (group commit), so its cost is divided by the number of
waiters. Brief writes that need not wait for the disk are committed on the event loop's own thread
(`store/rounds.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from perilune.errors import StoreError
from perilune.store.log import LogKeeper
from perilune.store.reader import Reader
from perilune.store.rounds import Rounds
from perilune.store.sqlite import fold_log, is_busy, is_storage_failure, open_database, translate
from perilune.store.waiter import Result, Waiter, Work, answer_all, answer_here

BUSY_S = 10.0
BUSY_PAUSE_S = 0.01
GROUP_LIMIT = 1024
"""Most writes in one commit: bounds the wait of the first one."""
START_AGAIN = "nothing of this was written; start Perilune again"


class Store:
    """One SQLite file: many readers, one writer thread with group commit."""

    def __init__(self, path: Path | str, schema: Sequence[str], *, sync_every_s: float = 0.0) -> None:
        """Open or make the file. `schema` is a forward-only list of single statements: an old file gets
        those it lacks, so later versions append to the list and never edit it.

        With `sync_every_s`, `write` does not wait for the disk, which hears of commits that often: a power
        cut may take the commits of the last moment, whole ones and the newest only. `write_now` waits.

        Raises JournalCorrupt, StorageFull, StoreError."""
        self.path = Path(path)
        self._queue: queue.SimpleQueue[Waiter | None] = queue.SimpleQueue()
        self._rounds = Rounds(self._commit_brief, self._hand_over)
        self._committing = threading.Lock()
        """Held by who uses the connection."""
        self._counting = threading.Lock()
        self._under_way = 0
        """Writes that the thread was given and has not committed yet."""
        self._closed = False
        self._ended = ""
        """Why nothing more is written, once the thread has ended."""
        self._unsynced: StoreError | None = None
        """At the end: what was answered last is not on the disk."""
        with contextlib.ExitStack() as undo:
            try:
                self._connection = open_database(self.path, schema, later=sync_every_s > 0)
                undo.callback(self._connection.close)
                self._connection.execute("PRAGMA busy_timeout=0")  # `_begin` waits, where waiting is right
                self._reader = Reader(self.path)
                undo.callback(self._reader.close)
                self._log = LogKeeper(self.path, sync_every_s) if sync_every_s > 0 else None
            except sqlite3.Error as error:
                raise translate(error, self.path) from error
            except OSError as error:
                raise StoreError(f"cannot open {self.path}: {error.strerror}") from error
            undo.pop_all()
        self._thread = threading.Thread(target=self._run, name=f"store {self.path.name}", daemon=True)
        self._thread.start()

    async def write(self, work: Work[Result], *, brief: bool = False) -> Result:
        """Run `work` on the writer thread; returns its result once it is on disk, or with `sync_every_s` once
        it is safe from the end of the process.

        `brief` is for a work of a few statements: where nobody waits for the disk and nothing is under way,
        it runs on the loop's own thread, for handing it over and back would take longer than the work: with
        all others of a round of the loop at the round's end, or at once where the last rounds had no others.
        A work may run twice: the first time then leaves no trace.

        An exception of `work` undoes that work alone and is raised here. Cancelling the wait does not
        undo the write. Raises StorageFull, JournalCorrupt, StoreError: then nothing was kept."""
        self._check_open()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        waiter = Waiter(work, future, loop)
        if brief and self._log is not None and self._rounds.take_from(loop):
            self._rounds.add(waiter)
        else:
            self._hand_over((*self._rounds.rest(), waiter))  # in the order in which they came
        return await future

    def write_now(self, work: Work[Result]) -> Result:
        """The blocking twin of `write`, for code without an event loop, on disk always when it returns. Where
        it raises StoreError because it cannot get there, the write may stand."""
        future: Future[Result] = Future()
        self._check_open()
        self._hand_over((Waiter(work, future, None),))
        result = future.result()
        if self._log is not None:
            self._log.sync()
        return result

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of one query over what is committed. Thread-safe. Raises StoreError."""
        if self._closed:
            raise self._refusal()
        return self._reader.read(sql, params)

    def close(self) -> None:
        """Commit what was submitted, then close. Writes that come later are refused.

        Raises StoreError when what was answered lately could not be brought to the disk."""
        if self._closed:
            return
        self._closed = True
        self._hand_over(self._rounds.rest())
        self._reader.close()  # first: whoever closes last takes the -wal and -shm files away, if it may write
        self._queue.put(None)
        self._thread.join()
        if self._unsynced is not None:
            raise self._unsynced

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed or self._ended:
            raise self._refusal()

    # ---- brief writes, on the loop's thread

    def _commit_brief(self, waiters: Sequence[Waiter]) -> None:
        log = self._log
        # While the log goes to the disk, the kernel may keep us waiting with what we add to it.
        busy = log is None or log.is_busy or log.log_is_long or len(waiters) > GROUP_LIMIT
        if busy or self._under_way or self._ended or not self._committing.acquire(blocking=False):
            self._hand_over(waiters)
            return
        try:
            if self._ended or not self._commit(waiters, self._begin_at_once):
                self._hand_over(waiters)
                return
        except BaseException as error:
            self._ended = self._death(error)
            self._queue.put(None)  # the thread ends too
            if isinstance(error, KeyboardInterrupt):
                answer_here(waiters)
                raise
        finally:
            self._committing.release()
        answer_here(waiters)

    def _hand_over(self, waiters: Sequence[Waiter]) -> None:
        with self._counting:
            self._under_way += len(waiters)
            for waiter in waiters:
                self._queue.put(waiter)
        self._refuse_if_ended()  # the thread may have ended since the check: nobody else would answer

    # ---- the writer thread

    def _run(self) -> None:
        death = ""
        try:
            is_open = True
            while is_open:
                is_open = self._commit_group(self._next_group())
        except BaseException as error:  # noqa: BLE001  the thread's edge: whatever it was, waiters must hear of it
            death = self._death(error)
        finally:
            self._ended = death or self._ended or f"{self.path} is closed"
            self._refuse_if_ended()
            self._finish(heard=bool(death))

    def _finish(self, heard: bool) -> None:
        """`heard`: writes are refused, and say why. The keeper goes first: nothing is committed any more, and
        two cannot fold at the same time."""
        if self._log is not None:
            try:
                self._log.stop()
            except StoreError as error:
                self._unsynced = None if heard else error
        with self._committing:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA busy_timeout=10000")  # readers end soon
            fold_log(self._connection, "TRUNCATE")  # so that a copy of the file alone is whole; see `close`
            self._connection.close()

    def _next_group(self) -> list[Waiter | None]:
        group = [self._queue.get()]
        while len(group) < GROUP_LIMIT and not self._queue.empty():
            group.append(self._queue.get_nowait())
        return group

    def _commit_group(self, group: list[Waiter | None]) -> bool:
        """Run, commit and answer one group. False when the store is to close."""
        waiters = [waiter for waiter in group if waiter is not None]
        log = self._log
        try:
            with self._committing:
                self._commit(waiters, self._begin)
        finally:
            with self._counting:
                self._under_way -= len(waiters)
            answer_all(waiters)
        if log is not None and log.log_is_long:
            log.log_is_long = False
            with self._committing:
                fold_log(self._connection, "PASSIVE")  # short, for most was folded just now
        return len(waiters) == len(group)

    # ---- on either thread, holding `_committing`

    def _commit(self, waiters: Sequence[Waiter], begin: Callable[[], bool]) -> bool:
        """Run and commit one group. False where `begin` gives that: then nothing has happened. Raises what
        ends the store, when every waiter has an error."""
        log = self._log
        try:
            if log is not None and log.failure:
                log.check()
            done = self._perform(waiters, begin)
            if log is not None:
                log.written()
        except BaseException as error:
            for waiter in waiters:
                waiter.error = StoreError(self._death(error), mend=START_AGAIN)
            raise
        return done

    def _perform(self, waiters: Sequence[Waiter], begin: Callable[[], bool]) -> bool:
        execute = self._connection.execute
        try:
            if not begin():
                return False
            if not self._run_together(waiters):
                if not begin():
                    return False
                for waiter in waiters:
                    self._run_one(waiter)
            execute("COMMIT")
        except sqlite3.Error as error:
            for waiter in waiters:
                waiter.error = waiter.error or translate(error, self.path)
            if self._connection.in_transaction:
                execute("ROLLBACK")
        return True

    def _begin(self) -> bool:
        """Wait for whoever else writes, though not for ever. Raises sqlite3.OperationalError then."""
        patience = time.monotonic() + BUSY_S
        while not self._begin_at_once():
            if time.monotonic() > patience:
                raise sqlite3.OperationalError(f"another process has been writing for {BUSY_S:g} s")
            time.sleep(BUSY_PAUSE_S)
        return True

    def _begin_at_once(self) -> bool:
        """False while another process, which is none of ours, writes."""
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

    def _refuse_if_ended(self) -> None:
        if not self._ended:
            return
        waiters: list[Waiter] = []
        while not self._queue.empty():
            try:
                waiter = self._queue.get_nowait()
            except queue.Empty:  # another thread refuses them too
                break
            if waiter is not None:
                waiter.error = self._refusal()
                waiters.append(waiter)
        answer_all(waiters)

    def _refusal(self) -> StoreError:
        """A new one for each: an error that is raised again and again gathers a traceback without end."""
        return StoreError(self._ended or f"{self.path} is closed", mend=START_AGAIN)

    def _death(self, error: BaseException) -> str:
        if isinstance(error, StoreError):
            return error.message
        return f"the writer of {self.path} died: {error!r}"


def _sqlite_error(error: Exception) -> sqlite3.Error:
    """The error itself, or one that says that a work ended the group's transaction."""
    if isinstance(error, sqlite3.Error):
        return error
    return sqlite3.OperationalError(f"a write ended the shared transaction: {error!r}")
