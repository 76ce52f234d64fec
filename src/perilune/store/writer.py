"""A small durable database: one SQLite file, one writer thread, group commit.

Every `write` is answered only after the commit that holds it: synced to disk, or, where the store was opened
so, written to the log, which a killed process cannot lose and which is synced a moment later. All writes that
arrive while a commit is under way share the next one (group commit), so its cost is divided by the number of
waiters. What comes often and is small may be entered in a day book first (`store/daybook.py`): that needs no
commit, and every transaction begins with posting what waits there.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from perilune.errors import StoreError
from perilune.store.committer import Committer, no_work
from perilune.store.daybook import Daybook, Mark, Posting
from perilune.store.log import LogKeeper
from perilune.store.reader import Reader
from perilune.store.recovery import take_up
from perilune.store.sqlite import fold_log, open_database, translate
from perilune.store.waiter import Result, Waiter, Work, answer_all

BUSY_S = 10.0
GROUP_LIMIT = 1024
"""Most writes in one commit: bounds the wait of the first one."""
POST_EVERY_S = 0.2
POST_AT = 64
"""Entries that wait: then who enters the next one posts them all. By the thread, which had to win the
interpreter's lock back for each row, that would take several times as long."""
MOST_WAITING = 100_000
"""Entries that the tables do not take: then nothing new begins."""
READ_PATIENCE_S = 0.1
"""How long reading waits for entries to be posted, while another process writes."""
START_AGAIN = "nothing of this was written; start Perilune again"


class Signal(Enum):
    """What the writer thread hears besides writes."""

    ENTERED = 1
    """Something waits to be posted."""
    CLOSE = 2


class Store:
    """One SQLite file: many readers, one writer thread with group commit, perhaps a day book before it."""

    def __init__(
        self,
        path: Path | str,
        schema: Sequence[str],
        *,
        sync_every_s: float = 0.0,
        posting: Posting | None = None,
    ) -> None:
        """Open or make the file. `schema` is a forward-only list of single statements: an old file gets
        those it lacks, so later versions append to the list and never edit it.

        With `sync_every_s`, `write` does not wait for the disk, which hears of commits that often: a power
        cut may take the commits of the last moment, whole ones and the newest only. `write_now` waits.

        `posting` knows the entries of the day book and needs `daybook.TABLE` in the schema. What a process
        that was killed had entered is posted here.

        Raises JournalCorrupt, StorageFull, StoreError."""
        self.path = Path(path)
        self._queue: queue.SimpleQueue[Waiter | Signal] = queue.SimpleQueue()
        self._committing = threading.Lock()
        """Held by who uses the connection."""
        self._daybook: Daybook | None = None
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
                self._tables = Reader(self.path)
                undo.callback(self._tables.close)
                self._committer = Committer(self._connection, self.path)
                if posting is not None:
                    self._daybook = take_up(self._connection, self._committer, self.path, posting)
                self._log: LogKeeper | None = None
                if sync_every_s > 0:
                    self._connection.execute("PRAGMA synchronous=NORMAL")
                    self._log = LogKeeper(self.path, sync_every_s)
            except sqlite3.Error as error:
                raise translate(error, self.path) from error
            except OSError as error:
                raise StoreError(f"cannot open {self.path}: {error.strerror}") from error
            undo.pop_all()
        self._thread = threading.Thread(target=self._run, name=f"store {self.path.name}", daemon=True)
        self._thread.start()

    async def write(self, work: Work[Result]) -> Result:
        """Run `work` on the writer thread; returns its result once it is on disk, or with `sync_every_s` once
        it is safe from the end of the process.

        An exception of `work` undoes that work alone and is raised here. Cancelling the wait does not
        undo the write. Raises StorageFull, JournalCorrupt, StoreError: then nothing was kept."""
        self._check_open()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._submit(Waiter(work, future, loop))
        return await future

    def write_now(self, work: Work[Result]) -> Result:
        """The blocking twin of `write`, for code without an event loop, on disk always when it returns. Where
        it raises StoreError because it cannot get there, the write may stand."""
        future: Future[Result] = Future()
        self._check_open()
        self._submit(Waiter(work, future, None))
        result = future.result()
        if self._log is not None:
            self._log.sync()
        return result

    def enter(self, entry: Any, keep: int | None = None) -> None:
        """Enter something in the day book: at once it is safe from the end of the process. With `keep` it is
        refused where so many bytes would not be left for what must follow it, or while the tables take
        nothing. From any thread, one at a time. Raises StorageFull, StoreError: then it is not entered."""
        self._check_open()
        log, daybook = self._log, self._daybook
        assert daybook is not None, "opened with `posting`"
        if log is not None and log.failure:
            log.check()
        if keep is not None:
            self._refuse_behind(daybook)
        waiting = daybook.enter(entry, keep or 0)
        if waiting == 1:
            self._queue.put(Signal.ENTERED)
        elif waiting >= POST_AT and log is not None and not log.is_syncing:
            with contextlib.suppress(Exception):  # the store has ended; what was entered is entered still
                self._post(0.0)

    @property
    def changes(self) -> int:
        """Grows with each commit of what was written: what was read from the tables before may be old."""
        return self._committer.changes

    @property
    def is_synced(self) -> bool:
        """Whether `write` waits for the disk, and what was entered needs `secure`."""
        return self._log is None

    async def secure(self) -> None:
        """Wait until all that was entered is as safe as what is written. Raises what `write` raises."""
        if self.is_synced:
            await self.write(no_work)

    def waiting(self) -> list[tuple[Mark, Any]]:
        """What is entered and not posted: later than what the row of `daybook` says is all of it."""
        return [] if self._daybook is None else self._daybook.waiting()

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of one query over what is committed. What was entered is posted first, unless another
        process writes for long. Thread-safe. Raises StoreError."""
        if self._closed:
            raise self._refusal()
        if self._daybook is not None and not self._daybook.is_posted:
            self._post(READ_PATIENCE_S)
        return self._reader.read(sql, params)

    def read_posted(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The same over what is posted: short queries, that wait neither for posting nor for long queries.
        What `waiting` said before comes on top of it, where it is later than the row of `daybook`."""
        if self._closed:
            raise self._refusal()
        return self._tables.read(sql, params)

    def close(self) -> None:
        """Commit what was submitted, then close. Writes that come later are refused.

        Raises StoreError when what was answered lately could not be brought to the disk."""
        if self._closed:
            return
        self._closed = True
        self._tables.close()
        self._reader.close()  # first: whoever closes last takes the -wal and -shm files away, if it may write
        self._queue.put(Signal.CLOSE)
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

    def _submit(self, waiter: Waiter) -> None:
        self._queue.put(waiter)
        self._refuse_if_ended()  # the thread may have ended since the check: nobody else would answer

    def _refuse_behind(self, daybook: Daybook) -> None:
        behind = self._committer.behind
        if behind is not None:
            raise type(behind)(behind.message, mend=behind.mend)
        if daybook.backlog > MOST_WAITING:
            raise StoreError(f"{self.path} is kept by another process that writes", mend="stop that process")

    def _post(self, patience_s: float) -> None:
        """Post what waits on this thread, unless that takes waiting for others for longer."""
        if not self._committing.acquire(timeout=patience_s):
            return
        try:
            if not self._ended:
                self._commit((), patience_s)
        except BaseException as error:
            self._ended = self._death(error)
            self._queue.put(Signal.CLOSE)  # the thread ends too
            raise
        finally:
            self._committing.release()

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
            if self._daybook is not None:
                self._daybook.close()

    def _next_group(self) -> list[Waiter | Signal]:
        """Empty when it is time to post what was entered."""
        group: list[Waiter | Signal] = []
        while not group or group == [Signal.ENTERED]:
            idle = self._daybook is None or self._daybook.is_posted
            try:
                group = [self._queue.get(timeout=None if idle else POST_EVERY_S)]
            except queue.Empty:
                return []
        while len(group) < GROUP_LIMIT and not self._queue.empty():
            group.append(self._queue.get_nowait())
        return group

    def _commit_group(self, group: list[Waiter | Signal]) -> bool:
        """Run, commit and answer one group. False when the store is to close."""
        waiters = [one for one in group if isinstance(one, Waiter)]
        log = self._log
        try:
            with self._committing:
                self._commit(waiters, BUSY_S)
        finally:
            answer_all(waiters)
        if log is not None and log.log_is_long:
            log.log_is_long = False
            with self._committing:
                fold_log(self._connection, "PASSIVE")  # short, for most was folded just now
        return Signal.CLOSE not in group

    # ---- by whoever holds `_committing`

    def _commit(self, waiters: Sequence[Waiter], patience_s: float) -> None:
        """Post, run and commit one group. Raises what ends the store, when every waiter has an error."""
        log = self._log
        try:
            if log is not None and log.failure:
                log.check()
            self._committer.commit(waiters, patience_s)
            if log is not None:
                log.written()
        except BaseException as error:
            for waiter in waiters:
                waiter.error = StoreError(self._death(error), mend=START_AGAIN)
            raise

    def _refuse_if_ended(self) -> None:
        if not self._ended:
            return
        waiters: list[Waiter] = []
        while not self._queue.empty():
            try:
                waiter = self._queue.get_nowait()
            except queue.Empty:  # another thread refuses them too
                break
            if isinstance(waiter, Waiter):
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
