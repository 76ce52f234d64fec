"""Which request ids were used before."""

from __future__ import annotations

from collections import deque

from perilune.store import Store

LATEST = 4096


class UsedIds:
    """The latest are held in memory, and the greatest of all others. Ids sort by the time of their making
    (`accounts/request_ids.py`), so the tables are hardly ever asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._latest: set[str] = set()
        self._order: deque[str] = deque()
        self._greatest: str | None = None

    def has(self, request_id: str) -> bool:
        if self._greatest is None:
            self._greatest = self._store.read("SELECT MAX(id) FROM request")[0][0] or ""
        if request_id in self._latest:
            return True
        return request_id <= self._greatest and bool(
            self._store.read("SELECT 1 FROM request WHERE id = ?", (request_id,))
        )

    def add(self, request_id: str) -> None:
        self._latest.add(request_id)
        self._order.append(request_id)
        if len(self._order) > LATEST:
            oldest = self._order.popleft()
            self._latest.discard(oldest)
            self._greatest = max(self._greatest or "", oldest)

    def discard(self, request_id: str) -> None:
        """It was taken back."""
        self._latest.discard(request_id)
