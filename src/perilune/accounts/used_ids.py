"""Which request ids were used before."""

from __future__ import annotations

from perilune.store import Store

LATEST = 4096
GREATEST = "SELECT MAX(id) FROM request"
ONE = "SELECT 1 FROM request WHERE id = ?"


class UsedIds:
    """The latest are held in memory, and the greatest of all others. Ids sort by the time of their making
    (`accounts/request_ids.py`), so the tables are hardly ever asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._latest: set[str] = set()
        self._before: set[str] = set()
        """As many that came before those."""
        self._greatest: str | None = None

    def has(self, request_id: str) -> bool:
        if self._greatest is None:
            waiting = [entry.request_id for _, entry in self._store.waiting()]
            self._greatest = max("", *waiting, self._store.read_posted(GREATEST)[0][0] or "")
        if request_id in self._latest or request_id in self._before:
            return True
        if request_id > self._greatest:
            return False
        waiting = self._store.waiting()  # first: what is posted meanwhile is found in the tables
        return any(entry.request_id == request_id for _, entry in waiting) or bool(
            self._store.read_posted(ONE, (request_id,))
        )

    def add(self, request_id: str) -> None:
        if len(self._latest) == LATEST:
            self._greatest = max(self._before | {self._greatest or ""})
            self._latest, self._before = set(), self._latest
        self._latest.add(request_id)

    def discard(self, request_id: str) -> None:
        """It was taken back."""
        self._latest.discard(request_id)
        self._before.discard(request_id)
