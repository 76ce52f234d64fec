"""The file of the local index: its tables, and how text is cut and words are looked for.

A *document* is a file below an indexed folder, a *passage* a piece of its text, found on its own. The index
is made from the folders alone, so it may be deleted at any time and made again.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

from perilune.errors import ConfigError, StoreError

FILE_NAME = "search.db"
VERSION = 1
BUSY_S = 30.0
"""Another `perilune index` may be writing."""
SCHEMA = """
CREATE TABLE folder (path TEXT PRIMARY KEY);
CREATE TABLE document (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE,
    shown TEXT NOT NULL,
    title TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    digest BLOB NOT NULL
);
CREATE TABLE passage (id INTEGER PRIMARY KEY, document_id INTEGER NOT NULL);
CREATE INDEX passage_of ON passage (document_id);
CREATE VIRTUAL TABLE words USING fts5 (title, body, tokenize = 'porter unicode61 remove_diacritics 2');
"""

PASSAGE = 1200
"""Characters, about."""
LONGEST_WORD = 64
MOST_WORDS = 32
"""Of a query."""
JOINT = "\u2060"
"""Put between characters of scripts without spaces, so that each is a word of its own; taken out again when
a passage is shown."""
UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\u0e00-\u0e7f"
BETWEEN = re.compile(rf"(?<=[{UNSPACED}])(?=\w)|(?<=\w)(?=[{UNSPACED}])")
PIECES = re.compile(rf"[{UNSPACED}]+|[^\W{UNSPACED}]+")


def open_index(path: Path) -> sqlite3.Connection:
    """For writing, made where it is missing. Raises StoreError, ConfigError without FTS5."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        try:
            path.chmod(0o600)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            _make(connection)
        except BaseException:
            connection.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise index_error(error, path) from error
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Raises StoreError."""
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=BUSY_S)
        connection.execute("PRAGMA query_only = 1")
    except sqlite3.Error as error:
        raise index_error(error, path) from error
    return connection


def _make(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
        for statement in SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def index_error(error: Exception, path: Path) -> StoreError | ConfigError:
    if "fts5" in str(error):
        return ConfigError("this Python's SQLite has no full-text search (FTS5)", mend="use another Python")
    mend = "free some space" if "is full" in str(error) else "delete it and index again"
    return StoreError(f"the search index {path} cannot be used: {error}", mend=mend)


def passages(text: str) -> Iterator[str]:
    """The text in pieces that end where a paragraph, a line, a sentence or at least a word ends."""
    at = 0
    while at < len(text):
        end = at + PASSAGE
        if end < len(text):
            window = text[at + PASSAGE // 2 : end]
            cut = next((cut for mark in ("\n\n", "\n", ". ", " ") if (cut := window.rfind(mark)) >= 0), None)
            end = end if cut is None else at + PASSAGE // 2 + cut + 1
        if piece := text[at:end].strip():
            yield piece
        at = end


def spaced(text: str) -> str:
    return BETWEEN.sub(JOINT, text)


def unspaced(text: str) -> str:
    return text.replace(JOINT, "")


def terms_of(query: str) -> list[str]:
    """Each word of a query as a quoted FTS5 string, in which nothing is syntax. Of a run of characters
    without spaces every two neighbours are a word."""
    words: list[str] = []
    for piece in PIECES.findall(query.replace("_", " ")):
        if re.match(rf"[{UNSPACED}]", piece) and len(piece) > 1:
            words += [f"{one} {other}" for one, other in pairwise(piece)]
        else:
            words.append(piece[:LONGEST_WORD])
    unique = dict.fromkeys(word.lower() for word in words)
    return [f'"{word}"' for word in unique][:MOST_WORDS]
