"""The day book: entries that are safe at once, and posted to the tables of a database a little later, many
in one transaction.

An entry is one line of a file beside the database: a checksum, a space, JSON. What is written there a killed
process cannot lose. The file is as long as it will ever be from the start, filled with zeros, so that there
is room for the entries that must not fail, and the first zero is the end. When it is full the next one
follows, and files that are posted whole are deleted. In the database one row says how far it is posted, and
changes in the transaction that posts.

The first line of a file names the book and where the entries before it end. So a file of another database, or
one that a power cut has left without the one before it, is not taken for what comes next.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import threading
import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from perilune.errors import StorageFull, StoreError

log = logging.getLogger("perilune.store")

FILE_BYTES = 4 << 20
MOST_KEPT = FILE_BYTES // 2
TABLE = (
    "CREATE TABLE daybook (book TEXT NOT NULL, file INTEGER NOT NULL, byte INTEGER NOT NULL)",
    "INSERT INTO daybook VALUES ('', 0, 0)",
)
"""Statements that belong to the schema of a database with a day book."""
ASIDE = "unposted"

Mark = tuple[int, int]
"""How far: the number of a file, and bytes of it."""


class First(msgspec.Struct):
    """The first line of a file."""

    book: str
    after: Mark


first_line = msgspec.json.Decoder(First)


class Posting(Protocol):
    """What entries are, and what they do to the tables."""

    def encode(self, entry: Any, /) -> bytes:
        """As JSON on one line."""
        ...

    def decode(self, line: bytes) -> Any:
        """Raises ValueError."""
        ...

    def post(self, connection: sqlite3.Connection, entries: Sequence[Any]) -> bool:
        """Inside a transaction that it must neither commit nor roll back. Whether the tables now say
        something else than the entries."""
        ...


class Daybook:
    """The files of one database. One thread at a time posts; any may enter."""

    def __init__(self, database: Path, posting: Posting, book: str, posted: Mark) -> None:
        """Take up what was entered after `posted`; it waits to be posted. Then comes `set_aside`. Raises
        OSError."""
        self.posting = posting
        self._book = book
        self._stem = f"{database.name}-day-"
        self._folder = database.parent
        self._waiting: deque[tuple[Mark, Any]] = deque()
        self._lock = threading.Lock()
        """Held by who enters."""
        self._fd = -1
        self._oldest = posted[0]
        """Files before it are gone."""
        self._rest: list[Path] = []
        """Files that cannot be posted, or not to their end."""
        self._before = self._take_up(posted)
        """Where the entries end that files of before hold."""
        self._file = max([self._before[0], *(number for number, _ in self._files())])
        self._end = FILE_BYTES  # so that the first entry begins a file of its own

    @property
    def is_posted(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    @property
    def backlog(self) -> int:
        """How many entries wait."""
        return len(self._waiting)

    def waiting(self) -> list[tuple[Mark, Any]]:
        """The entries that are not posted yet, the oldest first, each with the place where it ends."""
        return list(self._waiting)

    def enter(self, entry: Any, keep: int = 0) -> int:
        """Write one entry down where `keep` bytes are left after it. How many wait now.

        Raises StorageFull, StoreError: then it is not entered."""
        line = _line(self.posting.encode(entry))
        with self._lock:
            if self._end + len(line) + min(keep, MOST_KEPT) > FILE_BYTES:
                self._next_file()
            try:
                if os.pwrite(self._fd, line, self._end) < len(line):
                    raise OSError(errno.ENOSPC, "")
            except OSError as error:
                raise _refused(self._path(self._file), error) from error
            self._end += len(line)
            self._waiting.append(((self._file, self._end), entry))
            return len(self._waiting)

    def posted(self, mark: Mark) -> None:
        """All entries up to that mark are in the tables."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= mark:
            waiting.popleft()
        for number in range(self._oldest, mark[0]):
            with contextlib.suppress(OSError):  # the next start deletes it
                self._path(number).unlink()
        self._oldest = mark[0]

    def set_aside(self) -> None:
        """Once all that could be taken up is posted: what could not be is kept under another name."""
        for path in self._rest:
            name = aside = path.with_name(f"{path.name}.{ASIDE}")
            number = 1
            while aside.exists():
                number += 1
                aside = name.with_name(f"{name.name}-{number}")
            path.rename(aside)
            log.warning("%s is no whole part of the day book: what could not be read is in %s", path, aside)

    def close(self) -> None:
        """Leaves files only where entries in them wait."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
        if self.is_posted:
            for _, path in self._files():
                with contextlib.suppress(OSError):  # as above
                    path.unlink()

    def _next_file(self) -> None:
        """Raises StorageFull, StoreError: then the file of before goes on."""
        path = self._path(self._file + 1)
        after = self._before if self._fd < 0 else (self._file, self._end)
        line = _line(msgspec.json.encode(First(self._book, after)))
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _refused(path, error) from error
        try:
            _take_room(fd)
            if os.pwrite(fd, line, 0) < len(line):
                raise OSError(errno.ENOSPC, "")
        except OSError as error:
            os.close(fd)
            path.unlink()
            raise _refused(path, error) from error
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._file, self._end = fd, self._file + 1, len(line)

    def _take_up(self, posted: Mark) -> Mark:
        """Where the entries end that files of before hold."""
        at = posted
        for number, path in self._files():
            if number < posted[0]:
                path.unlink()
            elif self._rest:
                self._rest.append(path)  # calls would end there that never began
            else:
                at, is_whole = self._take_up_file(number, path, at)
                if not is_whole:
                    self._rest.append(path)
        return at

    def _take_up_file(self, number: int, path: Path, at: Mark) -> tuple[Mark, bool]:
        """Where its entries end, or those before it, and whether nothing follows them."""
        text, _, rest = path.read_bytes().partition(b"\0")
        lines = text.splitlines(keepends=True)
        try:
            first = first_line.decode(_text(lines[0]))
        except (IndexError, ValueError):
            return at, not text and not rest.strip(b"\0")
        end = len(lines[0])
        if first.book != self._book or (number > at[0] and first.after != at):
            return at, False
        posted = at[1] if number == at[0] else 0
        for line in lines[1:]:
            end += len(line)
            if end <= posted:
                continue
            try:
                entry = self.posting.decode(_text(line))
            except ValueError:
                return at, False
            at = (number, end)
            self._waiting.append((at, entry))
        return at, not rest.strip(b"\0")

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._stem}{number}"

    def _files(self) -> list[tuple[int, Path]]:
        names = (path.name.removeprefix(self._stem) for path in self._folder.glob(f"{self._stem}*"))
        return sorted((int(name), self._path(int(name))) for name in names if name.isdecimal())


def _line(text: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _text(line: bytes) -> bytes:
    """Raises ValueError."""
    checksum, _, text = line.partition(b" ")
    if not text.endswith(b"\n") or int(checksum, 16) != zlib.crc32(text[:-1]):
        raise ValueError
    return text


def _take_room(fd: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, FILE_BYTES)
    else:  # macOS
        os.ftruncate(fd, FILE_BYTES)


def _refused(path: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageFull(f"no space left for {path}", mend="free some disk space and try again")
    return StoreError(f"cannot write {path}: {error.strerror}")
