"""Beside a writer that does not wait for the disk: brings its log there, and folds it into the file."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path

from perilune.errors import StoreError
from perilune.store.sqlite import connect, fold_log

FOLD_EVERY_S = 1.0
"""How often the log is folded into the file."""
LONG_LOG_PAGES = 16_000
"""Then (64 MB) the writer, which meanwhile has always written more, folds the rest itself."""


class LogKeeper:
    """A thread with a connection of its own.

    Once a sync has failed, nobody knows what of the log is on the disk, and a later one that succeeds says
    nothing of it: so the first failure is kept and holds for good."""

    def __init__(self, path: Path, every_s: float) -> None:
        """Of the open store at `path`. Raises OSError, sqlite3.Error."""
        self.failure = ""
        """Why nothing more may be acknowledged."""
        self.log_is_long = False
        self.is_syncing = False
        """While the log goes to the disk, the kernel may keep those waiting who add to it."""
        self._path = path
        self._every_s = every_s
        # Held open: the kernel tells a write that failed behind our back once to each open file, and to one
        # that is opened later perhaps not at all. Nor can a sync then fail for want of a descriptor.
        self._fd = os.open(path.with_name(f"{path.name}-wal"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._connection = connect(path, "rw")
        except sqlite3.Error:
            os.close(self._fd)
            raise
        self._syncing = threading.Lock()
        self._written = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sync {path.name}", daemon=True)
        self._thread.start()

    def written(self) -> None:
        """A commit was made."""
        if not self._written.is_set():
            self._written.set()

    def sync(self) -> None:
        """Wait until all that was committed is on the disk. Raises StoreError, from the first failure on
        always."""
        with self._syncing:
            if not self.failure and self._fd >= 0:  # `stop` has synced what came before it
                try:
                    _to_disk(self._fd)
                except OSError as error:
                    self.failure = error.strerror or repr(error)
        self.check()

    def check(self) -> None:
        """Raises StoreError when a sync has failed."""
        if self.failure:
            raise StoreError(
                f"cannot bring {self._path} to the disk: {self.failure}",
                mend="what was written last may not survive a power cut; check the disk, then start again",
            )

    def stop(self) -> None:
        """After the last commit. Raises StoreError when that, or one before it, is not on the disk."""
        self._stopping.set()
        self._written.set()
        self._thread.join()
        self._connection.close()
        try:
            self.sync()
        finally:
            with self._syncing:
                os.close(self._fd)
                self._fd = -1

    def _run(self) -> None:
        folded = time.monotonic()
        try:
            while self._written.wait() and not self._stopping.is_set():
                self._written.clear()  # before the sync: a commit during it asks for another
                self.is_syncing = True
                self.sync()
                self.is_syncing = False
                if time.monotonic() - folded >= FOLD_EVERY_S:
                    self.log_is_long = fold_log(self._connection, "PASSIVE") > LONG_LOG_PAGES
                    folded = time.monotonic()
                self._stopping.wait(self._every_s)
        except BaseException as error:  # noqa: BLE001  the thread's edge: the writer must hear of it
            self.failure = self.failure or repr(error)


def _to_disk(fd: int) -> None:
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:  # macOS
        os.fsync(fd)
