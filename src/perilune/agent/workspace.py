"""An agent's isolated tree of files, and the paths it may name.

Every path a model writes goes through `clean_path` and then through the workspace's own resolution:
nothing absolute, no `..`, nothing in `.git`, no symbolic link on the way. A refusal is a `PathRefused`,
which the tools turn into a tool error; it is never an exception of the run.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

SKIPPED_FOLDERS = frozenset({".git", "__pycache__", "node_modules", ".venv", ".mypy_cache", ".pytest_cache"})
LONGEST_NAME, LONGEST_PATH, DEEPEST = 255, 1_000, 100
"""Bytes, bytes and folders: what every file system takes, below any folder, and no recursion minds."""


class PathRefused(Exception):
    """A path or file that an agent may not use; the message is fit for the model."""


@dataclass(frozen=True)
class View:
    """The folders behind a workspace, for the sandbox.

    Without `lower` the command sees `upper` itself, writable. With `lower` it sees an overlay: `lower`
    read-only beneath, changes in `upper`, `work` an empty folder on the same file system as `upper`.
    """

    upper: Path
    lower: Path | None = None
    work: Path | None = None


class Workspace(Protocol):
    """A tree of regular files, named by clean relative POSIX paths. All methods may raise PathRefused."""

    @property
    def view(self) -> View:
        """Where a sandboxed command finds the tree."""
        ...

    def read_bytes(self, path: str) -> bytes:
        """The file's bytes. PathRefused `no file PATH` when there is none."""
        ...

    def write_bytes(self, path: str, data: bytes) -> None:
        """Create or replace the file, parents included; an existing file keeps its mode bits."""
        ...

    def exists(self, path: str) -> bool: ...

    def list_files(self, folder: str = "") -> Sequence[str]:
        """All files below the folder, sorted, without `.git` and caches. PathRefused
        `no directory DIR` when there is none."""
        ...


def clean_path(path: str) -> str:
    """`a/./b` -> `a/b`. Raises PathRefused for what can never be inside a workspace."""
    if not path or "\0" in path:
        raise PathRefused("a path is needed")
    try:
        names = path.encode().split(b"/")
    except UnicodeEncodeError:
        raise PathRefused("the path holds half of a surrogate pair") from None
    if len(path.encode()) > LONGEST_PATH or max(map(len, names)) > LONGEST_NAME or len(names) > DEEPEST:
        raise PathRefused(f"{path[:40]}... is too long for a path")
    if path.startswith(("/", "~")) or "\\" in path:
        raise PathRefused(f"{path} is not a relative path")
    parts = [part for part in PurePosixPath(path).parts if part != "."]
    if ".." in parts:
        raise PathRefused(f"{path} leaves the workspace")
    if any(part.lower() == ".git" for part in parts):
        raise PathRefused(f"{path} is inside .git")
    if not parts:
        raise PathRefused(f"{path} is a directory")
    return "/".join(parts)


def clean_folder(folder: str) -> str:
    """As `clean_path`; `""`, `.` and `/`-closed names mean folders, the root is `""`."""
    trimmed = folder.rstrip("/") if folder != "/" else folder
    return "" if trimmed in ("", ".") else clean_path(trimmed)


class DirectoryWorkspace:
    """A plain folder as a workspace, changed in place; for one agent working alone."""

    def __init__(self, root: Path, *, max_file_bytes: int = 10_000_000) -> None:
        self._root = root.resolve(strict=True)
        self._max_file_bytes = max_file_bytes

    @property
    def view(self) -> View:
        return View(upper=self._root)

    def read_bytes(self, path: str) -> bytes:
        target = self._resolve(path)
        info = _regular(target, path)
        if info.st_size > self._max_file_bytes:
            raise PathRefused(f"{path} is larger than {self._max_file_bytes} bytes")
        return target.read_bytes()

    def write_bytes(self, path: str, data: bytes) -> None:
        if len(data) > self._max_file_bytes:
            raise PathRefused(f"{path} would be larger than {self._max_file_bytes} bytes")
        target = self._resolve(path)
        mode = 0o644
        if os.path.lexists(target):
            mode = stat.S_IMODE(_regular(target, path).st_mode)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed over, so a kill leaves the old file or the new one.
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        temporary.write_bytes(data)
        temporary.chmod(mode)
        temporary.replace(target)

    def exists(self, path: str) -> bool:
        return self._resolve(path).is_file()

    def list_files(self, folder: str = "") -> Sequence[str]:
        inside = clean_folder(folder)
        top = self._resolve(inside) if inside else self._root
        if not top.is_dir():
            raise PathRefused(f"no directory {folder}")
        found: list[str] = []
        for here, folders, files in os.walk(top):
            folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
            relative = Path(here).relative_to(self._root)
            found += [(relative / name).as_posix() for name in files if not (Path(here) / name).is_symlink()]
        return sorted(found)

    def _resolve(self, path: str) -> Path:
        cleaned = clean_path(path)
        target = self._root
        for part in cleaned.split("/"):
            target = target / part
            if target.is_symlink():
                raise PathRefused(f"{path} goes through a symbolic link")
        return target


def _regular(target: Path, path: str) -> os.stat_result:
    try:
        info = target.stat(follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        raise PathRefused(f"no file {path}") from None
    if not stat.S_ISREG(info.st_mode):
        raise PathRefused(f"{path} is not a file")
    return info


def read_text(workspace: Workspace, path: str, max_bytes: int) -> str:
    """The file as text, line endings untouched. Raises PathRefused for binary, too large or no UTF-8."""
    data = workspace.read_bytes(path)
    if len(data) > max_bytes:
        raise PathRefused(f"{path} is larger than {max_bytes} bytes")
    if b"\0" in data:
        raise PathRefused(f"{path} is a binary file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise PathRefused(f"{path} is not UTF-8 text") from None


def write_text(workspace: Workspace, path: str, text: str, max_bytes: int) -> None:
    """Write the text as UTF-8. Raises PathRefused also for text that has no UTF-8 form."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise PathRefused("the text holds half of a surrogate pair") from None
    if len(data) > max_bytes:
        raise PathRefused(f"{path} would be larger than {max_bytes} bytes")
    workspace.write_bytes(path, data)
