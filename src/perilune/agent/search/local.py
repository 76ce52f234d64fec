"""Search in the local index: passages that hold all words of the query first, then those that hold some."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from perilune.agent.search.index_tables import open_for_reading, terms_of, unspaced
from perilune.agent.search.provider import Hit
from perilune.errors import PeriluneError, SearchFailed

OF_ONE_DOCUMENT = 2
"""Most passages of it among the results, so that one long document does not fill them."""
STEPS = 20_000
"""Instructions of SQLite between two looks at the clock."""
FIND = """SELECT p.document_id, w.rowid, d.title, d.shown, w.body
    FROM words w JOIN passage p ON p.id = w.rowid JOIN document d ON d.id = p.document_id
    WHERE words MATCH ? ORDER BY bm25(words, 4.0, 1.0), w.rowid LIMIT ?"""


class LocalProvider:
    def __init__(self, path: Path, *, timeout_s: float) -> None:
        """`path` is the index's file, which need not be there yet."""
        self._path = path
        self._timeout_s = timeout_s

    async def search(self, query: str, limit: int) -> tuple[Hit, ...]:
        return await asyncio.to_thread(self._search, query, limit)

    def _search(self, query: str, limit: int) -> tuple[Hit, ...]:
        deadline = time.monotonic() + self._timeout_s
        terms = terms_of(query)
        if not terms:
            return ()
        if not self._path.exists():
            raise SearchFailed("there is no search index yet")
        try:
            with closing(open_for_reading(self._path)) as connection:
                connection.set_progress_handler(lambda: time.monotonic() > deadline, STEPS)
                return tuple(_best(connection, terms, limit))
        except sqlite3.OperationalError as error:
            if time.monotonic() > deadline:
                raise SearchFailed(f"the search took longer than {self._timeout_s:g} s") from error
            raise SearchFailed("the search index cannot be read") from error
        except (sqlite3.Error, PeriluneError) as error:
            raise SearchFailed("the search index cannot be read") from error


def _best(connection: sqlite3.Connection, terms: list[str], limit: int) -> list[Hit]:
    hits: list[Hit] = []
    seen: set[int] = set()
    taken: dict[int, int] = {}
    for joined in (" AND ".join(terms), " OR ".join(terms)):
        wanted = OF_ONE_DOCUMENT * limit * 4
        for document, passage, title, shown, body in connection.execute(FIND, (joined, wanted)):
            if len(hits) == limit:
                return hits
            if passage in seen or taken.get(document, 0) == OF_ONE_DOCUMENT:
                continue
            seen.add(passage)
            taken[document] = taken.get(document, 0) + 1
            hits.append(Hit(unspaced(title), shown, unspaced(body)))
    return hits
