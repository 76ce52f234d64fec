"""Uploaded files on disk: HOME/files/PROJECT/ID holds the bytes, ID.json what is known of them.

The bytes are written first, each file whole and synced, so a crash leaves a file or nothing that counts;
bytes without a card are swept when their project is first asked for. Ids are looked up, never made into
paths. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from perilune.api.file_kinds import Purpose
from perilune.errors import InputError, JournalCorrupt, NotFound, StoreError
from perilune.store import replace_file

MAX_FILE_BYTES = 100 * 1024 * 1024
MAX_FILES = 1000
MAX_PROJECT_BYTES = 10 * 1024**3
MAX_NAME = 255
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Card(msgspec.Struct, frozen=True):
    id: str
    filename: str
    purpose: Purpose
    media_type: str
    bytes: int
    created_at: int


@dataclass
class _Shelf:
    """The files of one project, and room that uploads under way have taken."""

    folder: Path
    cards: dict[str, Card] = field(default_factory=dict)
    coming: int = 0
    coming_bytes: int = 0


class FileStore:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._shelves: dict[int, _Shelf] = {}

    def add(
        self,
        project: int,
        filename: str,
        purpose: Purpose,
        kind: str,
        data: bytes,
        *,
        size: int | None = None,
    ) -> Card:
        """Durable when it returns. `size` is that of the file as it was sent, where `data` is only its text.
        Raises InputError for a file that is empty or one too many or too large, StoreError."""
        size = len(data) if size is None else size
        check_size(size)
        with self._room(project, max(size, len(data))) as shelf:
            card = Card(
                id=new_id(),
                filename=clean_name(filename),
                purpose=purpose,
                media_type=kind,
                bytes=size,
                created_at=int(time.time()),
            )
            replace_file(shelf.folder / card.id, data)
            replace_file(shelf.folder / f"{card.id}.json", msgspec.json.encode(card))
            with self._lock:
                shelf.cards[card.id] = card
        return card

    def cards(self, project: int) -> list[Card]:
        """Newest first."""
        with self._lock:
            cards = list(self._shelf(project).cards.values())
        return sorted(cards, key=lambda card: card.id, reverse=True)

    def card(self, project: int, file_id: str) -> Card:
        """Raises NotFound, for another project's file too."""
        with self._lock:
            found = self._shelf(project).cards.get(file_id)
        if found is None:
            raise _unknown(file_id)
        return found

    def read(self, project: int, file_id: str) -> bytes:
        """Raises NotFound, StoreError."""
        card = self.card(project, file_id)
        try:
            return (self._folder / str(project) / card.id).read_bytes()
        except FileNotFoundError as error:  # deleted since
            raise _unknown(file_id) from error
        except OSError as error:
            raise StoreError(f"cannot read file {card.id}: {error.strerror}") from error

    def delete(self, project: int, file_id: str) -> None:
        """Raises NotFound, StoreError."""
        with self._lock:
            shelf = self._shelf(project)
            if file_id not in shelf.cards:
                raise _unknown(file_id)
            try:
                (shelf.folder / f"{file_id}.json").unlink(missing_ok=True)
                (shelf.folder / file_id).unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(f"cannot delete file {file_id}: {error.strerror}") from error
            del shelf.cards[file_id]

    @contextmanager
    def _room(self, project: int, size: int) -> Iterator[_Shelf]:
        """Keep a place for one more file, so that uploads at the same time cannot pass a limit together."""
        with self._lock:
            shelf = self._shelf(project, make=True)
            if len(shelf.cards) + shelf.coming >= MAX_FILES:
                raise InputError(
                    "The number of files you have uploaded exceeded the max file count "
                    f"{MAX_FILES}, please delete previous uploaded files"
                )
            used = sum(card.bytes for card in shelf.cards.values()) + shelf.coming_bytes
            if used + size > MAX_PROJECT_BYTES:
                raise InputError(
                    f"the project's files would be more than {MAX_PROJECT_BYTES >> 30} GiB together",
                    field="file",
                    mend="delete some that were uploaded before",
                )
            shelf.coming += 1
            shelf.coming_bytes += size
        try:
            yield shelf
        finally:
            with self._lock:
                shelf.coming -= 1
                shelf.coming_bytes -= size

    def _shelf(self, project: int, *, make: bool = False) -> _Shelf:
        """Read from disk when first asked for. Only under the lock."""
        shelf = self._shelves.get(project)
        if shelf is None:
            shelf = _load(self._folder / str(project))
            self._shelves[project] = shelf
        if make:
            try:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                shelf.folder.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise StoreError(f"cannot make {shelf.folder}: {error.strerror}") from error
        return shelf


def new_id() -> str:
    """Sorts by when it was made: microseconds, then chance."""
    return f"file-{time.time_ns() // 1000:014x}{secrets.token_hex(5)}"


def clean_name(name: str) -> str:
    """The last piece of a path as the client sent it: for showing only."""
    last = CONTROL.sub("", name.replace("\\", "/").rpartition("/")[2]).strip()
    return last[:MAX_NAME] or "file"


def _load(folder: Path) -> _Shelf:
    try:
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        cards = [_read_card(path) for path in found if path.suffix == ".json" and path.name[0] != "."]
        known = {card.id for card in cards}
        for path in found:
            if path.name.removesuffix(".json") not in known:  # an upload or a deletion that a crash cut
                path.unlink()
    except OSError as error:
        raise StoreError(f"cannot read {folder}: {error.strerror}") from error
    return _Shelf(folder, {card.id: card for card in cards})


def _read_card(path: Path) -> Card:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Card)
    except msgspec.DecodeError as error:
        raise JournalCorrupt(f"{path} does not read back: {error}", mend="move it away") from error


def check_size(size: int) -> None:
    """Raises InputError in the hosted API's words."""
    if size == 0:
        raise InputError("File size is zero, please confirm and re-upload the file")
    if size > MAX_FILE_BYTES:
        raise too_large()


def too_large() -> InputError:
    return InputError(
        f"File size is too large, max file size is {MAX_FILE_BYTES >> 20}MB, "
        "please confirm and re-upload the file"
    )


def _unknown(file_id: str) -> NotFound:
    return NotFound(f"file {file_id[:80]} is not found", mend="GET /v1/files lists the project's files")
