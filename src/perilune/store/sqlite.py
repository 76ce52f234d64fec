"""SQLite's own ways: how a file is opened, checked and brought up to date, and what its errors mean."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from perilune.errors import JournalCorrupt, StorageFull, StoreError

CHECK_BYTES = 64 * 1024 * 1024
"""Files up to this size are read through and checked when they are opened."""
CHECKPOINT_PAGES = 4000
"""The write-ahead log is folded into the file after this many pages (16 MB)."""


def connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
        timeout=10.0,
    )


def open_database(path: Path, schema: Sequence[str], later: bool) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        make_private(path)
    except OSError as error:
        raise StoreError(f"cannot make {path}: {error.strerror}") from error
    connection = connect(path, "rwc")
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={0 if later else CHECKPOINT_PAGES}")
        connection.execute("PRAGMA foreign_keys=ON")
        _check(connection, path)
        _migrate(connection, path, schema)
    except (sqlite3.Error, StoreError):
        connection.close()
        raise
    return connection


def make_private(path: Path) -> None:
    """Make the file where there is none, for its owner alone; SQLite gives its log the same mode. A file that
    is there is never opened here: closing it would drop the locks that SQLite holds on it."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def fold_log(connection: sqlite3.Connection, how: Literal["PASSIVE", "TRUNCATE"]) -> int:
    """Bring the write-ahead log into the file; how many pages it has. What does not fit, or cannot be written
    or synced, stays in the log: SQLite brings that to the disk first, and writes it again the next time."""
    with contextlib.suppress(sqlite3.Error):
        return int(connection.execute(f"PRAGMA wal_checkpoint({how})").fetchone()[1])
    return 0


def _check(connection: sqlite3.Connection, path: Path) -> None:
    if path.stat().st_size > CHECK_BYTES:
        return
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise _corrupt(path, str(verdict))


def _migrate(connection: sqlite3.Connection, path: Path, schema: Sequence[str]) -> None:
    done = connection.execute("PRAGMA user_version").fetchone()[0]
    if done > len(schema):
        raise newer(path)
    if done == len(schema):
        return
    connection.execute("BEGIN IMMEDIATE")
    for statement in schema[done:]:
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version={len(schema)}")
    connection.execute("COMMIT")


def newer(path: Path) -> StoreError:
    return StoreError(f"{path} was written by a newer version", mend="use that version, or another --home")


def _primary_code(error: BaseException) -> int:
    """SQLite's result code without its extension byte; 0 for other errors."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def is_busy(error: BaseException) -> bool:
    """Whether somebody else holds what was asked for."""
    return _primary_code(error) == sqlite3.SQLITE_BUSY


def is_storage_failure(error: BaseException) -> bool:
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
        mend=f"restore it from a backup, or move {path.name} and all {path.name}-* away to start anew",
    )


def translate(error: sqlite3.Error, path: Path) -> StoreError:
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
