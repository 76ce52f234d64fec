"""Opening a store's day book: what the process of before had entered is posted first."""

from __future__ import annotations

import secrets
import sqlite3
from pathlib import Path

from perilune.errors import JournalCorrupt, StorageFull, StoreError
from perilune.store.committer import Committer
from perilune.store.daybook import Daybook, Posting

PATIENCE_S = 10.0


def take_up(connection: sqlite3.Connection, committer: Committer, path: Path, posting: Posting) -> Daybook:
    """The day book of the database at `path`, of which nothing waits. A database has its book's name from
    here. Raises StorageFull, StoreError: then all is as it was; OSError, sqlite3.Error."""
    book, file, byte = connection.execute("SELECT book, file, byte FROM daybook").fetchone()
    if not book:
        book = secrets.token_hex(8)
        connection.execute("UPDATE daybook SET book = ?", (book,))
    daybook = committer.daybook = Daybook(path, posting, book, (file, byte))
    try:
        committer.commit((), PATIENCE_S)
    except Exception as error:
        raise _unfit(path, repr(error)) from error
    behind = committer.behind
    if isinstance(behind, StorageFull | JournalCorrupt):
        raise behind
    if behind is not None:
        raise _unfit(path, behind.message)
    if not daybook.is_posted:
        raise StoreError(f"another process writes to {path}", mend="stop it, then start again")
    daybook.set_aside()
    return daybook


def _unfit(path: Path, why: str) -> StoreError:
    return StoreError(
        f"what {path.name}-day-* hold does not fit {path}: {why}",
        mend="put the database back that they belong to, or move them away: then it is not in the books",
    )
