"""Read-only access to a store's file."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perilune.errors import StoreError
from perilune.store.sqlite import connect, newer, translate


class Reader:
    """Read-only access to a store's file, from any thread and also from another process."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError when there is no such file, JournalCorrupt when it is not a database."""
        self._path = path
        self._lock = threading.Lock()
        try:
            self._connection = connect(path, "ro")
            self._connection.execute("PRAGMA query_only=1")
        except sqlite3.Error as error:
            raise translate(error, path) from error

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
            raise translate(error, self._path) from error

    def expect(self, schema: Sequence[str]) -> None:
        """Raises StoreError when the file's tables are those of an older or a newer version."""
        done = self.read("PRAGMA user_version")[0][0]
        if done > len(schema):
            raise newer(self._path)
        if done < len(schema):
            raise StoreError(
                f"{self._path} was written by an older version, and that still owns it",
                mend="stop it, and start it again with this version",
            )

    def close(self) -> None:
        with self._lock:
            self._connection.close()
