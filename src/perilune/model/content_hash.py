"""What a checkpoint folder contains, as one hash, and the check against its own list of hashes.

Imports no torch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from perilune.errors import CheckpointError
from perilune.model.json_files import is_plain_name, read_bounded

LIST_NAME = "checkpoint.sha256"
"""`<hex digest>  <file name>` per line, as sha256sum writes and reads it."""
MAX_HASHED_BYTES = 4 * 1024**3
"""Above this, hashing would take longer than loading: the files' names, sizes and heads stand for them."""
HEAD_BYTES = 1024 * 1024
MAX_LIST_BYTES = 16 * 1024**2


def content_hash(folder: Path) -> str:
    """Hex SHA-256 that changes when config or weights change; also checks LIST_NAME when there is one.

    Folders above MAX_HASHED_BYTES are hashed by name, size and first megabyte of each file, and their
    list is taken as read; `sha256sum -c checkpoint.sha256` checks them in full.
    Raises CheckpointError naming the file that differs.
    """
    files = sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.index.json")])
    files = [path for path in files if path.is_file()]
    whole = sum(path.stat().st_size for path in files) <= MAX_HASHED_BYTES
    digests = {path.name: _digest(path, whole) for path in files}
    if whole:
        _compare(folder, digests)
    total = hashlib.sha256()
    for name, digest in digests.items():
        total.update(f"{digest}  {name}\n".encode())
    return total.hexdigest()


def write_list(folder: Path) -> None:
    """Write LIST_NAME for every file in the folder."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != LIST_NAME)
    lines = [f"{_digest(folder / name, True)}  {name}\n" for name in names]
    (folder / LIST_NAME).write_text("".join(lines), encoding="utf-8")


def read_list(folder: Path) -> dict[str, str]:
    """File name -> hex digest as LIST_NAME says; empty when there is none.

    Raises CheckpointError when it cannot be read or names a file outside the folder.
    """
    path = folder / LIST_NAME
    if not path.exists():
        return {}
    try:
        lines = read_bounded(path, MAX_LIST_BYTES).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"not readable: {error}", field=str(path), mend="copy it again") from error
    rows = [line.split(maxsplit=1) for line in lines if line]
    listed = {row[1].lstrip("*"): row[0] for row in rows if len(row) == 2}
    for name in listed:
        if not is_plain_name(name):
            raise CheckpointError(
                f"{LIST_NAME} names {name!r:.80}, which is not a file of this folder",
                field=str(path),
                mend="do not use this checkpoint",
            )
    return listed


def _compare(folder: Path, digests: dict[str, str]) -> None:
    listed = read_list(folder)
    if not listed and not (folder / LIST_NAME).exists():
        return
    for name, digest in digests.items():
        if listed.get(name) != digest:
            raise CheckpointError(
                f"does not match {LIST_NAME}",
                field=str(folder / name),
                mend="the file is damaged or was changed: copy the whole folder again",
            )
    for name in listed:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"listed in {LIST_NAME} but not there", field=str(folder / name), mend="copy the folder again"
            )


def _digest(path: Path, whole: bool) -> str:
    with path.open("rb") as file:
        if whole:
            return hashlib.file_digest(file, "sha256").hexdigest()
        head = hashlib.sha256(f"{path.stat().st_size}\n".encode())
        head.update(file.read(HEAD_BYTES))
        return head.hexdigest()
