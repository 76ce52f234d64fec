"""Results of searches that were paid for, kept for the conversations that go on from them.

HOME/searches/PROJECT/DAY/ID.json, one file each, whole and synced. An id tells by its own beginning when it
was made, so nothing needs to be listed to find one, and old days are taken away as folders. Everything here
blocks: call it in a thread.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from perilune.chat.web_search import Kept
from perilune.errors import StoreError
from perilune.store import replace_file

KEEP_DAYS = 30
DAY_S = 86_400
ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class SearchShelf:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._swept = 0
        """Day of the last sweep."""

    def add(self, project: int, search_id: str, kept: Kept) -> None:
        """Durable when it returns. Raises StoreError."""
        path = self._path(project, search_id)
        assert path is not None, "an id that we made"
        try:
            for folder in (self._folder, self._folder / str(project), path.parent):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {path.parent}: {error.strerror}") from error
        replace_file(path, msgspec.json.encode(kept))
        self._sweep()

    def find(self, project: int, search_ids: Iterable[str]) -> dict[str, Kept]:
        """Those that are there; another project's are not. Raises StoreError."""
        found = {}
        for search_id in search_ids:
            path = self._path(project, search_id)
            try:
                if path is not None:
                    found[search_id] = msgspec.json.decode(path.read_bytes(), type=Kept)
            except FileNotFoundError:
                continue
            except (OSError, msgspec.DecodeError) as error:
                raise StoreError(f"cannot read {path}: {error}", mend="remove the file") from error
        return found

    def _path(self, project: int, search_id: str) -> Path | None:
        """Where it lies; None for what is no id of ours, so none becomes a path."""
        if not ID.fullmatch(search_id):
            return None
        return self._folder / str(project) / str(_day_of(search_id)) / f"{search_id}.json"

    def _sweep(self) -> None:
        """Once a day, take away the days that are over."""
        today = int(time.time()) // DAY_S
        with self._lock:
            if self._swept == today:
                return
            self._swept = today
        for day in self._folder.glob("*/*"):
            if day.name.isdecimal() and int(day.name) < today - KEEP_DAYS:
                shutil.rmtree(day, ignore_errors=True)


def _day_of(search_id: str) -> int:
    """Days since 1970: an id begins with its milliseconds, in ten digits."""
    milliseconds = 0
    for digit in search_id[:10]:
        milliseconds = milliseconds * 32 + DIGITS.index(digit)
    return milliseconds // 1000 // DAY_S
