"""Make the local index from folders, and keep it true: `perilune index DIR`.

A file is read again when its size or time has changed, and taken in anew when its content has; what is no
longer there is taken out. One document at a time is in memory, and each is one short transaction: a run that
is killed loses one document, the next run goes on, and searches meanwhile see what is there. Links are not
followed, hidden files and folders not looked into, and HOME, which holds keys, never is.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from perilune.agent.search.index_tables import index_error, open_index, passages, spaced
from perilune.chat.documents.aside import Document, Readers, packed_kind
from perilune.chat.documents.plain import decoded, html_text, looks_like_html
from perilune.errors import InputError, UnsupportedInput

MIB = 1 << 20
MAX_FILE = 64 * MIB
MAX_TEXT_FILE = 8 * MIB
"""Of what is text already: logs and data beyond that are not what anybody looks for."""
LOOK = 8192
"""Bytes by which most binary files are told."""
MAX_TITLE = 200
PASSED_BY = frozenset({"node_modules", "__pycache__"})
HTML = frozenset({".html", ".htm", ".xhtml"})
BELOW = "SELECT id FROM document WHERE path >= ? AND path < ?"


@dataclass
class Done:
    """What a run did, in files."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> files."""
    documents: int = 0
    """In the index now."""
    folders: list[str] = field(default_factory=list)

    def skip(self, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1


async def index(path: Path, folders: Sequence[Path]) -> Done:
    """Bring the index at `path` up to date with these folders, or with none named with all that it knows.

    Raises InputError for what is no folder, StoreError, ConfigError."""
    named = [_folder(one) for one in folders]
    if not named and not path.exists():
        raise _nothing_yet()
    with _opened(path) as connection:
        known = _folders(connection)
        if not named and not known:
            raise _nothing_yet()
        run = _Run(connection, path.parent)
        for folder in named or [_folder(Path(one)) for one in known]:
            await run.take(folder)
        return _counted(connection, run.done)


def forget(path: Path, folder: Path) -> Done:
    """Take a folder and all below it out of the index. Raises InputError when nothing of it is there."""
    place = Path(os.path.realpath(folder.expanduser()))
    with _opened(path) as connection:
        with _transaction(connection):
            gone = connection.execute(BELOW, _bounds(place)).fetchall()
            known = connection.execute("DELETE FROM folder WHERE path = ?", (str(place),)).rowcount
            for (document,) in gone:
                _remove(connection, document)
        if not gone and not known:
            raise InputError(f"{place} is not in the index", field="DIR", mend="name a folder that is")
        return _counted(connection, Done(removed=len(gone)))


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(open_index(path)) as connection:
        try:
            yield connection
        except sqlite3.Error as error:
            raise index_error(error, path) from error


def _folders(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT path FROM folder ORDER BY path")]


def _counted(connection: sqlite3.Connection, done: Done) -> Done:
    done.documents = connection.execute("SELECT COUNT(*) FROM document").fetchone()[0]
    done.folders = _folders(connection)
    return done


def _nothing_yet() -> InputError:
    return InputError("nothing is indexed yet", field="DIR", mend="name a folder")


class _Run:
    """One pass over folders."""

    def __init__(self, connection: sqlite3.Connection, home: Path) -> None:
        self.done = Done()
        self._connection = connection
        self._home = os.path.realpath(home)
        self._readers = Readers()
        connection.execute("CREATE TEMP TABLE seen (document_id INTEGER PRIMARY KEY)")

    async def take(self, folder: Path) -> None:
        for entry in self._files(folder):
            await self._file(folder, entry)
        with _transaction(self._connection):
            self._connection.execute("INSERT OR IGNORE INTO folder VALUES (?)", (str(folder),))
            gone = self._connection.execute(
                f"{BELOW} AND id NOT IN (SELECT document_id FROM seen)", _bounds(folder)
            ).fetchall()
            for (document,) in gone:
                _remove(self._connection, document)
        self.done.removed += len(gone)

    def _files(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        """In the order of their names, folder by folder."""
        waiting = [str(folder)]
        while waiting:
            place = waiting.pop()
            if place == self._home:
                continue
            try:
                with os.scandir(place) as listed:
                    entries = sorted(listed, key=lambda entry: entry.name)
            except OSError:
                self.done.skip("a folder that cannot be read")
                continue
            for entry in entries:
                if entry.name.startswith(".") or entry.name in PASSED_BY:
                    continue
                if entry.is_file(follow_symlinks=False):
                    yield entry
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)

    async def _file(self, folder: Path, entry: os.DirEntry[str]) -> None:
        try:
            state = entry.stat(follow_symlinks=False)
            entry.path.encode()
            known = self._connection.execute(
                "SELECT id, size, mtime_ns, digest FROM document WHERE path = ?", (entry.path,)
            ).fetchone()
            if known and known[1:3] == (state.st_size, state.st_mtime_ns):
                self._keep(known[0])
                return
            data = _read(entry.path, state.st_size)
            digest = hashlib.sha256(data).digest()
            if known and known[3] == digest:
                self._connection.execute(
                    "UPDATE document SET size = ?, mtime_ns = ? WHERE id = ?",
                    (state.st_size, state.st_mtime_ns, known[0]),
                )
                self._keep(known[0])
                return
            document = await _document(entry.path, data, self._readers)
        except UnsupportedInput as error:
            self.done.skip(error.message)
            return
        except UnicodeEncodeError:
            self.done.skip("a name that is not UTF-8")
            return
        except OSError:
            self.done.skip("cannot be read")
            return
        shown = f"{folder.name}/{os.path.relpath(entry.path, folder)}"
        with _transaction(self._connection):
            if known:
                _remove(self._connection, known[0])
            row = (entry.path, shown, document.title, state.st_size, state.st_mtime_ns, digest)
            added = _add(self._connection, row, document.text)
        self._connection.execute("INSERT OR IGNORE INTO seen VALUES (?)", (added,))
        if known:
            self.done.changed += 1
        else:
            self.done.added += 1

    def _keep(self, document: int) -> None:
        new = self._connection.execute("INSERT OR IGNORE INTO seen VALUES (?)", (document,)).rowcount
        self.done.unchanged += new


def _read(path: str, size: int) -> bytes:
    """Raises UnsupportedInput for what is not taken in, without reading all of it where the start says so."""
    if size > MAX_FILE:
        raise UnsupportedInput(f"larger than {MAX_FILE // MIB} MiB")
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        data = file.read(LOOK)
        if packed_kind(data) is None:
            # UTF-16 has zeros too, and says by its first two bytes what it is.
            if b"\0" in data and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
                raise UnsupportedInput("not text")
            if size > MAX_TEXT_FILE:
                raise UnsupportedInput(f"text of more than {MAX_TEXT_FILE // MIB} MiB")
        return data + file.read(MAX_FILE)


async def _document(path: str, data: bytes, readers: Readers) -> Document:
    name = os.path.basename(path)
    if (kind := packed_kind(data)) is not None:
        found = await readers.read(kind, data)
        return Document(found.text, found.title[:MAX_TITLE] or name)
    text = decoded(data)
    if text is None:
        raise UnsupportedInput("not text")
    title = ""
    if os.path.splitext(name)[1].lower() in HTML or looks_like_html(text):
        title, text = html_text(text)
    elif text.startswith("# "):
        title = text[2:].partition("\n")[0].strip()
    if not text.strip():
        raise UnsupportedInput("empty")
    return Document(text, title[:MAX_TITLE] or name)


def _add(connection: sqlite3.Connection, row: tuple[object, ...], text: str) -> int:
    """The new document's id."""
    document = connection.execute(
        "INSERT INTO document (path, shown, title, size, mtime_ns, digest) VALUES (?, ?, ?, ?, ?, ?)", row
    ).lastrowid
    assert document is not None
    names = spaced(f"{row[2]} {row[1]}")
    for piece in passages(text):
        passage = connection.execute("INSERT INTO passage (document_id) VALUES (?)", (document,)).lastrowid
        connection.execute(
            "INSERT INTO words (rowid, title, body) VALUES (?, ?, ?)", (passage, names, spaced(piece))
        )
    return document


def _remove(connection: sqlite3.Connection, document: int) -> None:
    connection.execute(
        "DELETE FROM words WHERE rowid IN (SELECT id FROM passage WHERE document_id = ?)", (document,)
    )
    connection.execute("DELETE FROM passage WHERE document_id = ?", (document,))
    connection.execute("DELETE FROM document WHERE id = ?", (document,))


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _folder(path: Path) -> Path:
    """The folder itself, whatever links lead to it."""
    place = Path(os.path.realpath(path.expanduser()))
    if not place.is_dir():
        raise InputError(
            f"{path} is not a folder", field="DIR", mend="name one that is; --forget takes a lost one out"
        )
    return place


def _bounds(folder: Path) -> tuple[str, str]:
    """What lies below it sorts between these two: `0` comes right after `/`."""
    start = str(folder).rstrip("/")
    return f"{start}/", f"{start}0"
