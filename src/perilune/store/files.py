"""Small files that are replaced as a whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from perilune.errors import StorageFull, StoreError


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a whole file so that a crash leaves the old or the new one, synced. Raises StoreError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(draft, path)
        _sync_folder(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f"no space left for {path}", mend="free some disk space and try again"
            ) from error
        raise StoreError(f"cannot write {path}: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
