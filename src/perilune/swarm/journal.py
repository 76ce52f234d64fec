"""A session's journal: one SQLite file, HOME/swarm/ID.db, appended to by one process, read by anybody.

`append` returns when the events are on disk; what 300 agents append at the same moment shares one sync (see
`store/`). All events of one call are kept or none. A body over 16 KB lies in a table of its own under its
hash. Each row carries a checksum, so damage that SQLite cannot see is found too, with its position.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import msgspec

from perilune.errors import JournalCorrupt, SessionNotFound
from perilune.store import Reader, Store
from perilune.swarm.events import Entry, Event

INLINE_BYTES = 16 * 1024
PAGE_ROWS = 1000

SCHEMA = (
    "CREATE TABLE event (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, type TEXT NOT NULL, "
    "crc INTEGER NOT NULL, body BLOB, blob TEXT)",
    "CREATE TABLE blob (hash TEXT PRIMARY KEY, body BLOB NOT NULL)",
)
_INSERT = "INSERT INTO event (seq, at, type, crc, body, blob) VALUES (?, ?, ?, ?, ?, ?)"
_SELECT = (
    "SELECT event.seq, event.at, event.crc, event.body, event.blob, blob.body FROM event "
    "LEFT JOIN blob ON blob.hash = event.blob WHERE seq > ? ORDER BY seq LIMIT ?"
)

_encode = msgspec.json.Encoder().encode


@cache
def _decoder() -> msgspec.json.Decoder[Event]:
    return msgspec.json.Decoder(Event)


class Appender(Protocol):
    """What the runner needs of a journal."""

    async def append(self, entries: Sequence[Entry]) -> None:
        """Durable when it returns. Raises StoreError: then nothing was kept."""
        ...


class Journal:
    """The one writer of a session's journal."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.path = store.path

    @classmethod
    def open(cls, path: Path | str) -> Journal:
        """Open or make the file. Raises JournalCorrupt, StorageFull, StoreError."""
        return cls(Store(path, SCHEMA))

    async def append(self, entries: Sequence[Entry]) -> None:
        """Write entries, in order; durable when it returns. Calls are written in the order in which they
        were made. Raises StoreError: then nothing of this call was kept."""
        rows, blobs = [], []
        for entry in entries:
            body = _encode(entry.event)
            row, blob = _row(entry, body)
            rows.append(row)
            if blob is not None:
                blobs.append(blob)

        def work(connection: sqlite3.Connection) -> None:
            if blobs:
                connection.executemany("INSERT OR IGNORE INTO blob (hash, body) VALUES (?, ?)", blobs)
            connection.executemany(_INSERT, rows)

        await self._store.write(work)

    def read(self, after: int = 0) -> Iterator[Entry]:
        """Entries after this position. Raises JournalCorrupt naming the first one that is damaged."""
        return _read(self._store, self.path, after)

    def close(self) -> None:
        self._store.close()


class JournalReader:
    """A journal for onlookers: other threads, other processes. Never writes."""

    def __init__(self, path: Path | str) -> None:
        """Raises SessionNotFound when there is no such file, JournalCorrupt when it is no journal."""
        self.path = Path(path)
        if not self.path.is_file():
            raise SessionNotFound(f"no session {self.path.stem}", mend="perilune swarm list")
        self._reader = Reader(self.path)

    def read(self, after: int = 0) -> Iterator[Entry]:
        """Entries after this position that are on disk now. Raises JournalCorrupt."""
        return _read(self._reader, self.path, after) if self._reader.ready else iter(())

    def latest(self, *kinds: str) -> Event | None:
        """The last event of one of these kinds (their tags); None when there is none. Raises
        JournalCorrupt."""
        marks = ", ".join("?" * len(kinds))
        found = self._reader.read(f"SELECT max(seq) FROM event WHERE type IN ({marks})", kinds)
        if found[0][0] is None:
            return None
        seq = int(found[0][0])
        return next(_read(self._reader, self.path, seq - 1)).event

    def close(self) -> None:
        self._reader.close()


class _Rows(Protocol):
    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]: ...


def _row(entry: Entry, body: bytes) -> tuple[tuple[object, ...], tuple[str, bytes] | None]:
    kind = str(type(entry.event).__struct_config__.tag)
    crc = zlib.crc32(body)
    if len(body) <= INLINE_BYTES:
        return (entry.seq, entry.at, kind, crc, body, None), None
    name = hashlib.sha256(body).hexdigest()
    return (entry.seq, entry.at, kind, crc, None, name), (name, body)


def _read(rows: _Rows, path: Path, after: int) -> Iterator[Entry]:
    while page := rows.read(_SELECT, (after, PAGE_ROWS)):
        for seq, at, crc, body, name, blob in page:
            if seq != after + 1:
                raise _damaged(path, after + 1, "it is missing")
            yield _entry(path, seq, at, crc, blob if body is None else body, name)
            after = seq


def _entry(path: Path, seq: int, at: int, crc: int, body: bytes | None, name: str | None) -> Entry:
    if body is None:
        raise _damaged(path, seq, f"its body {name} is missing")
    if zlib.crc32(body) != crc:
        raise _damaged(path, seq, "its checksum does not match")
    try:
        return Entry(seq, at, _decoder().decode(body))
    except msgspec.DecodeError as error:
        raise _damaged(path, seq, str(error)) from None


def _damaged(path: Path, seq: int, what: str) -> JournalCorrupt:
    return JournalCorrupt(
        f"{path} is damaged at event {seq}: {what}",
        mend="restore it from a backup; the result branch and your files are as they were",
    )
