"""JSON from a checkpoint folder, read within bounds: the files come from strangers. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from perilune.errors import CheckpointError

COPY_AGAIN = "copy the file again from its source"
LONGEST_NAME = 255
"""Bytes of a file's name. Systems refuse to look for longer ones."""


def is_plain_name(name: str) -> bool:
    """Whether `name` may be that of a file in the folder it is read from, and can be shown."""
    plain = (
        name.isprintable() and "\\" not in name and name not in ("", ".", "..") and Path(name).name == name
    )
    return plain and len(name.encode()) <= LONGEST_NAME


def read_object(path: Path, most_bytes: int) -> dict[str, Any]:
    """The JSON object in `path`. Raises CheckpointError naming the file, and FileNotFoundError."""
    return parse_object(read_bounded(path, most_bytes), path)


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """All of `path`. Raises CheckpointError naming the file, and FileNotFoundError."""
    try:
        if not path.is_file() and path.exists():
            raise CheckpointError("is not a file", field=str(path), mend=COPY_AGAIN)
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be read: {error}", field=str(path), mend=COPY_AGAIN) from error
    if len(content) > most_bytes:
        raise CheckpointError(
            f"is larger than {most_bytes:,} bytes, which no such file is", field=str(path), mend=COPY_AGAIN
        )
    return content


def parse_object(content: bytes, path: Path) -> dict[str, Any]:
    """`content`, which was read from `path`, as a JSON object. Raises CheckpointError naming the file."""
    try:
        document = json.loads(content)
    # ValueError: also bytes that are no UTF-8, and numbers of more digits than Python converts.
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"not readable as JSON: {error}", field=str(path), mend=COPY_AGAIN) from error
    if not isinstance(document, dict):
        raise CheckpointError("must hold a JSON object", field=str(path), mend=COPY_AGAIN)
    return document
