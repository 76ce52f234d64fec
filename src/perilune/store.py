"""Durable small tables on SQLite, and the lock that gives a HOME one owner.

`Store` is one database file with one writer thread. Every `write` is answered only after the commit that
holds it: synced to disk, or, where the store was opened so, written to the log, which a killed process cannot
lose and which is synced a moment later. All writes that arrive while a commit is under way share the next one
(group commit), so its cost is divided by the number of waiters. SQL elsewhere stays portable:
tables, `?` parameters, no SQLite functions. What is particular to SQLite lives in this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from perilune.errors import ConfigError, HomeLocked, JournalCorrupt, StorageFull, StoreError

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]
"""Reads and writes rows on the connection it is given. Runs on the writer thread, inside a transaction
that it must neither commit nor roll back."""

GROUP_LIMIT = 1024
"""Most writes in one commit: bounds the wait of the first one."""
CHECK_BYTES = 64 * 1024 * 1024
"""Files up to this size are read through and checked when they are opened."""
CHECKPOINT_PAGES = 4000
"""The write-ahead log is folded into the file after this many pages (16 MB)."""
FOLD_EVERY_S = 1.0
"""How often it is folded beside the writer, in a store that syncs later."""
LONG_LOG_PAGES = 16_000
"""Then (64 MB) the writer, which meanwhile has always written more, folds the rest itself."""
LOCK_TRIES = 5
LOCK_PAUSE_S = 0.02
"""`home_holder` holds the lock for an instant while it looks; an owner-to-be waits that out."""


class _Waiter:
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


class Reader:
    """Read-only access to a store's file, from any thread and also from another process."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError when there is no such file, JournalCorrupt when it is not a database."""
        self._path = path
        self._lock = threading.Lock()
        try:
            self._connection = _connect(path, "ro")
            self._connection.execute("PRAGMA query_only=1")
        except sqlite3.Error as error:
            raise _translate(error, path) from error

    @property
    def ready(self) -> bool:
        """Whether the file has its tables: a store that is just being made has none for a moment."""
        return bool(self.read("PRAGMA user_version")[0][0])

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of one query over what is committed now."""
        try:
            with self._lock:
                return self._connection.execute(sql, params).fetchall()
        except sqlite3.Error as error:
            raise _translate(error, self._path) from error

    def expect(self, schema: Sequence[str]) -> None:
        """Raises StoreError when the file's tables are those of an older or a newer version."""
        done = self.read("PRAGMA user_version")[0][0]
        if done > len(schema):
            raise _newer(self._path)
        if done < len(schema):
            raise StoreError(
                f"{self._path} was written by an older version, and that still owns it",
                mend="stop it, and start it again with this version",
            )

    def close(self) -> None:
        with self._lock:
            self._connection.close()


class _Upkeep:
    """Beside a writer that does not wait for the disk: brings its log there, and folds it into the file."""

    def __init__(self, path: Path, every_s: float) -> None:
        self.error: OSError | None = None
        """Of a sync that failed: nothing more may be acknowledged."""
        self.log_is_long = False
        self._log = path.with_name(f"{path.name}-wal")
        self._every_s = every_s
        self._connection = _connect(path, "rw")
        self._written = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sync {path.name}", daemon=True)
        self._thread.start()

    def written(self) -> None:
        """A commit was made."""
        if not self._written.is_set():
            self._written.set()

    def sync(self) -> None:
        fd = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def stop(self) -> None:
        self._stopping.set()
        self._written.set()
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        folded = time.monotonic()
        while self._written.wait() and not self._stopping.is_set():
            self._written.clear()
            try:
                self.sync()
            except OSError as error:
                self.error = error
                return
            if time.monotonic() - folded >= FOLD_EVERY_S:
                self._fold()
                folded = time.monotonic()
            self._stopping.wait(self._every_s)

    def _fold(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # the log keeps what does not fit into the file now
            pages = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
            self.log_is_long = pages > LONG_LOG_PAGES


class Store:
    """One SQLite file: many readers, one writer thread with group commit."""

    def __init__(self, path: Path | str, schema: Sequence[str], *, sync_every_s: float = 0.0) -> None:
        """Open or make the file. `schema` is a forward-only list of single statements: an old file gets
        those it lacks, so later versions append to the list and never edit it.

        With `sync_every_s`, `write` does not wait for the disk, which hears of commits that often: a power
        cut may take the commits of the last moment, whole ones and the newest only. `write_now` waits.

        Raises JournalCorrupt, StorageFull, StoreError."""
        self.path = Path(path)
        self._queue: queue.SimpleQueue[_Waiter | None] = queue.SimpleQueue()
        self._closed = False
        self._ended: StoreError | None = None
        try:
            self._connection = _open(self.path, schema, later=sync_every_s > 0)
            self._upkeep = _Upkeep(self.path, sync_every_s) if sync_every_s > 0 else None
        except sqlite3.Error as error:
            raise _translate(error, self.path) from error
        self._reader = Reader(self.path)
        self._thread = threading.Thread(target=self._run, name=f"store {self.path.name}", daemon=True)
        self._thread.start()

    async def write(self, work: Work[Result]) -> Result:
        """Run `work` on the writer thread; returns its result once it is on disk.

        An exception of `work` undoes that work alone and is raised here. Cancelling the wait does not
        undo the write. Raises StorageFull, JournalCorrupt, StoreError: then nothing was kept."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._submit(_Waiter(work, future, loop))
        return await future

    def write_now(self, work: Work[Result]) -> Result:
        """The blocking twin of `write`, for code without an event loop."""
        future: Future[Result] = Future()
        self._submit(_Waiter(work, future, None))
        result = future.result()
        if self._upkeep is not None:
            self._sync_now(self._upkeep)
        return result

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of one query over what is committed. Thread-safe. Raises StoreError."""
        if self._closed:
            raise self._closed_error()
        return self._reader.read(sql, params)

    def close(self) -> None:
        """Commit what was submitted, then close. Writes that come later are refused."""
        if self._closed:
            return
        self._closed = True
        if self._upkeep is not None:
            self._upkeep.stop()
        self._reader.close()  # first: whoever closes last takes the -wal and -shm files away, if it may write
        self._queue.put(None)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- the writer thread

    def _submit(self, waiter: _Waiter) -> None:
        if self._closed or self._ended:
            raise self._ended or self._closed_error()
        self._queue.put(waiter)
        self._refuse_if_ended()  # the thread may have ended since the check: nobody else would answer

    def _run(self) -> None:
        ended = self._closed_error()
        try:
            is_open = True
            while is_open:
                is_open = self._commit_group(self._next_group())
        except BaseException as error:  # noqa: BLE001  the thread's edge: whatever it was, waiters must hear of it
            ended = StoreError(f"the writer of {self.path} died: {error!r}", mend="restart Perilune")
        finally:
            self._ended = ended
            self._refuse_if_ended()
            _fold_log(self._connection)
            self._connection.close()

    def _next_group(self) -> list[_Waiter | None]:
        group = [self._queue.get()]
        while len(group) < GROUP_LIMIT and not self._queue.empty():
            group.append(self._queue.get_nowait())
        return group

    def _commit_group(self, group: list[_Waiter | None]) -> bool:
        """Run, commit and answer one group. False when the store is to close."""
        waiters = [waiter for waiter in group if waiter is not None]
        try:
            if self._upkeep is not None and self._upkeep.error is not None:
                raise self._upkeep.error
            self._perform(waiters)
            if self._upkeep is not None:
                self._upkeep.written()
        except BaseException as error:
            for waiter in waiters:
                waiter.error = StoreError(
                    f"the writer of {self.path} died: {error!r}", mend="restart Perilune"
                )
            raise
        finally:
            _answer(waiters)
        if self._upkeep is not None and self._upkeep.log_is_long:
            self._upkeep.log_is_long = False
            self._fold_rest()
        return len(waiters) == len(group)

    def _fold_rest(self) -> None:
        """Most was folded a moment ago, so this is short; the log then begins anew."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _sync_now(self, upkeep: _Upkeep) -> None:
        try:
            upkeep.sync()
        except FileNotFoundError:  # closed meanwhile, which folds the log into the synced file
            return
        except OSError as error:
            raise StoreError(f"cannot sync {self.path}: {error.strerror}") from error

    def _perform(self, waiters: list[_Waiter]) -> None:
        execute = self._connection.execute
        try:
            execute("BEGIN IMMEDIATE")
            for waiter in waiters:
                self._run_one(waiter, alone=len(waiters) == 1)
            execute("COMMIT")
        except sqlite3.Error as error:
            for waiter in waiters:
                waiter.error = waiter.error or _translate(error, self.path)
            if self._connection.in_transaction:
                execute("ROLLBACK")

    def _run_one(self, waiter: _Waiter, alone: bool) -> None:
        """Run one work, which fails by itself: in a savepoint of its own where it shares the transaction.
        Raises sqlite3.Error when the whole group is lost."""
        execute = self._connection.execute
        if not alone:
            execute("SAVEPOINT one")
        try:
            waiter.result = waiter.work(self._connection)
        except Exception as error:
            if not self._connection.in_transaction or _is_storage_failure(error):
                raise _sqlite_error(error) from error
            waiter.error = error  # it belongs to this waiter alone
            execute("ROLLBACK" if alone else "ROLLBACK TO one")
            if alone:
                execute("BEGIN IMMEDIATE")
        if not alone:
            execute("RELEASE one")

    def _refuse_if_ended(self) -> None:
        if self._ended is None:
            return
        waiters: list[_Waiter] = []
        while not self._queue.empty():
            try:
                waiter = self._queue.get_nowait()
            except queue.Empty:  # another thread refuses them too
                break
            if waiter is not None:
                waiter.error = self._ended
                waiters.append(waiter)
        _answer(waiters)

    def _closed_error(self) -> StoreError:
        return StoreError(f"{self.path} is closed", mend="nothing was written; open the store again")


def _sqlite_error(error: Exception) -> sqlite3.Error:
    """The error itself, or one that says that a work ended the group's transaction."""
    if isinstance(error, sqlite3.Error):
        return error
    return sqlite3.OperationalError(f"a write ended the shared transaction: {error!r}")


def _answer(waiters: Sequence[_Waiter]) -> None:
    """One wake-up per event loop, not per write."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Waiter]] = {}
    for waiter in waiters:
        if waiter.loop is None:
            waiter.answer()
        else:
            by_loop.setdefault(waiter.loop, []).append(waiter)
    for loop, mine in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_answer_all, mine)


def _answer_all(waiters: Sequence[_Waiter]) -> None:
    for waiter in waiters:
        waiter.answer()


# ---- SQLite's own ways


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
        timeout=10.0,
    )


def _open(path: Path, schema: Sequence[str], later: bool) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreError(f"cannot make {path.parent}: {error.strerror}") from error
    connection = _connect(path, "rwc")
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'NORMAL' if later else 'FULL'}")
        connection.execute(f"PRAGMA wal_autocheckpoint={0 if later else CHECKPOINT_PAGES}")
        connection.execute("PRAGMA foreign_keys=ON")
        _check(connection, path)
        _migrate(connection, path, schema)
    except (sqlite3.Error, StoreError):
        connection.close()
        raise
    return connection


def _fold_log(connection: sqlite3.Connection) -> None:
    """Bring the write-ahead log into the file, so that a copy of the file alone is whole. SQLite does it at
    the last close, but not where that is a reader's. What does not fit now stays safe in the log."""
    with contextlib.suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _check(connection: sqlite3.Connection, path: Path) -> None:
    if path.stat().st_size > CHECK_BYTES:
        return
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise _corrupt(path, str(verdict))


def _migrate(connection: sqlite3.Connection, path: Path, schema: Sequence[str]) -> None:
    done = connection.execute("PRAGMA user_version").fetchone()[0]
    if done > len(schema):
        raise _newer(path)
    if done == len(schema):
        return
    connection.execute("BEGIN IMMEDIATE")
    for statement in schema[done:]:
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version={len(schema)}")
    connection.execute("COMMIT")


def _newer(path: Path) -> StoreError:
    return StoreError(f"{path} was written by a newer version", mend="use that version, or another --home")


def _primary_code(error: BaseException) -> int:
    """SQLite's result code without its extension byte; 0 for other errors."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _is_storage_failure(error: BaseException) -> bool:
    return _primary_code(error) in (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_READONLY,
    )


def _corrupt(path: Path, detail: str) -> JournalCorrupt:
    return JournalCorrupt(
        f"{path} is damaged: {detail}",
        mend=f"restore it from a backup, or move {path.name} and its -wal and -shm files away to start anew",
    )


def _translate(error: sqlite3.Error, path: Path) -> StoreError:
    match _primary_code(error):
        case sqlite3.SQLITE_FULL:
            return StorageFull(f"no space left for {path}", mend="free some disk space and try again")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return _corrupt(path, str(error))
        case sqlite3.SQLITE_CANTOPEN:
            return StoreError(f"cannot open {path}", mend="check that it exists and that you may write it")
        case sqlite3.SQLITE_READONLY:
            return StoreError(f"{path} is read-only", mend="check the file's owner and the mount")
        case _:
            return StoreError(f"{path}: {error}")


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a whole file so that a crash leaves the old or the new one, synced. Raises StoreError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(draft, path)
        _sync_folder(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f"no space left for {path}", mend="free some disk space and try again"
            ) from error
        raise StoreError(f"cannot write {path}: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---- one HOME, one owner


@dataclass(frozen=True)
class Holder:
    """Who owns a HOME."""

    pid: int
    purpose: str
    """The command that holds it, such as `serve`."""
    address: str
    """The base URL of a server that speaks for this HOME; empty for other commands."""
    admin: str = ""
    """The URL of its admin door; empty when that is closed."""


class HomeLock:
    """Ownership of a HOME folder: an exclusive flock on HOME/lock.

    The kernel drops it when the process ends, however it ends, so a killed owner leaves nothing to clean.
    The descriptor is closed on exec: child processes never hold it."""

    def __init__(self, home: Path, purpose: str = "perilune") -> None:
        """Take the lock. Raises HomeLocked naming the owner, ConfigError when HOME cannot be written."""
        self.path = home / "lock"
        self._purpose = purpose
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"cannot write to {home}: {error.strerror}", field="home", mend="choose another with --home"
            ) from error
        if not _try_lock(self._fd):
            os.close(self._fd)
            raise _locked(home)
        self.announce("")

    def announce(self, address: str, admin: str = "") -> None:
        """Record the base URL at which the owner can be reached, and that of its admin door."""
        text = f"{os.getpid()}\n{self._purpose}\n{address}\n{admin}\n".encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text, 0)

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def home_holder(home: Path) -> Holder | None:
    """Who owns HOME now; None when nobody does. Raises ConfigError for a HOME that cannot be read."""
    try:
        fd = os.open(home / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"cannot read {home}: {error.strerror}", field="home", mend="choose another with --home"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(fd)
    finally:
        os.close(fd)
    return None


def _try_lock(fd: int) -> bool:
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_S)
        else:
            return True
    return False


def _read_holder(fd: int) -> Holder:
    lines = os.pread(fd, 4096, 0).decode(errors="replace").splitlines()
    pid, purpose, address, admin = (*lines, "", "", "", "")[:4]
    return Holder(int(pid) if pid.isdigit() else 0, purpose, address, admin)


def _locked(home: Path) -> HomeLocked:
    holder = home_holder(home)
    who = f"process {holder.pid} (perilune {holder.purpose})" if holder and holder.pid else "another process"
    mend = (
        f"stop it with `kill {holder.pid}`, or use another --home" if holder and holder.pid else "try again"
    )
    return HomeLocked(f"{home} is in use by {who}", field="home", mend=mend)
