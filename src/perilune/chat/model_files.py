"""Files of a model's folder, read within bounds: they come from strangers."""

from __future__ import annotations

import errno
from pathlib import Path

COPY_AGAIN = "copy the file again from the model's source"


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """All of `path`. Raises OSError, its `strerror` saying what is wrong, also for what is too large and for
    what is no file: opening a pipe would wait for ever."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is not a file")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"is larger than {most_bytes:,} bytes")
    return content
