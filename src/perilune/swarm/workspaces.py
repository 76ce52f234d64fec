"""An assignment's isolated tree: the base checkout beneath, its own changes above, in plain files.

In the process, reads and writes go to the upper folder, else to the lower one; no mount is needed, so the
rename tools never start a sandbox. A sandboxed command mounts the same two folders as an overlay file
system. Both sides therefore speak overlayfs: a deletion is a character device 0/0 or an empty file with the
attribute `user.overlay.whiteout`, and a folder whose lower side is hidden has `user.overlay.opaque`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from perilune.agent.workspace import SKIPPED_FOLDERS, PathRefused, View, clean_folder, clean_path
from perilune.errors import InputError, RepositoryError
from perilune.swarm.repository import REGULAR, mode_of, run_git, write_entry

MAX_FILE_BYTES = 10_000_000
_WHITEOUT, _OPAQUE = "user.overlay.whiteout", "user.overlay.opaque"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")


@dataclass(frozen=True)
class FileChange:
    """One difference from the base. `content` None: deleted. `mode` is git's: 100644, 100755, or 120000 for
    a link, whose content is its target."""

    path: str
    content: bytes | None
    mode: str = REGULAR


class Workspaces:
    """The workspaces of one session below `root`, all over one base checkout."""

    def __init__(self, root: Path, base_dir: Path, *, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self._root = root.absolute()
        self._base = base_dir.resolve()
        self._max_file_bytes = max_file_bytes

    def open(self, assignment_id: str, attempt: int) -> OverlayWorkspace:
        """The workspace of this try: empty the first time, as it was left otherwise."""
        if not _NAME.fullmatch(assignment_id) or attempt < 0:
            raise InputError(f"{assignment_id!r}, attempt {attempt}, cannot name a workspace")
        home = self._root / f"{assignment_id}.{attempt}"
        (home / "upper").mkdir(parents=True, exist_ok=True)
        (home / "work").mkdir(exist_ok=True)
        return OverlayWorkspace(home, self._base, self._root / "ignore.git", self._max_file_bytes)


class OverlayWorkspace:
    """agent.workspace.Workspace over a base that is never written."""

    def __init__(self, home: Path, base: Path, ignore_git: Path, max_file_bytes: int) -> None:
        self.home = home
        self._lower = base
        self._upper = home / "upper"
        self._ignore_git = ignore_git
        self._max_file_bytes = max_file_bytes

    @classmethod
    def at(cls, home: Path, base: Path) -> OverlayWorkspace:
        """The workspace whose folders lie in `home`, to look at it or to set it anew."""
        return cls(home, base, home.parent / "ignore.git", MAX_FILE_BYTES)

    @property
    def view(self) -> View:
        return View(upper=self._upper, lower=self._lower, work=self.home / "work")

    def read_bytes(self, path: str) -> bytes:
        cleaned = clean_path(path)
        target = self._find(cleaned)
        info = None if target is None else target.lstat()
        if target is None or info is None or not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
            raise PathRefused(f"no file {path}")
        if stat.S_ISDIR(info.st_mode):
            raise PathRefused(f"{path} is not a file")
        if info.st_size > self._max_file_bytes:
            raise PathRefused(f"{path} is larger than {self._max_file_bytes} bytes")
        return target.read_bytes()

    def write_bytes(self, path: str, data: bytes) -> None:
        if len(data) > self._max_file_bytes:
            raise PathRefused(f"{path} would be larger than {self._max_file_bytes} bytes")
        cleaned = clean_path(path)
        old = self._find(cleaned)
        mode = 0o644
        if old is not None:
            info = old.lstat()
            if not stat.S_ISREG(info.st_mode):
                raise PathRefused(f"{path} is not a file")
            mode = stat.S_IMODE(info.st_mode)
        self._make_parents(cleaned)
        target = self._upper / cleaned
        # Written beside and renamed over, so a kill leaves the old file or the new one. It waits outside
        # the upper folder, where half a file would count as a change.
        temporary = self.home / f"writing.{os.getpid()}"
        temporary.write_bytes(data)
        temporary.chmod(mode)
        temporary.replace(target)

    def exists(self, path: str) -> bool:
        found = self._find(clean_path(path))
        return found is not None and stat.S_ISREG(found.lstat().st_mode)

    def list_files(self, folder: str = "") -> Sequence[str]:
        inside = clean_folder(folder)
        top, lower_seen = self._look_up(inside) if inside else (self._upper, True)
        if top is None or not top.is_dir():
            raise PathRefused(f"no directory {folder}")
        return sorted(self._regular_files(inside, lower_seen))

    def read_base(self, path: str) -> bytes | None:
        """The file as the base has it; None where it has no such regular file."""
        target = self._lower / clean_path(path)
        info = _lstat(target)
        return target.read_bytes() if info is not None and stat.S_ISREG(info.st_mode) else None

    def base_mode(self, path: str) -> str | None:
        """Git's mode of the file in the base, None where it has none."""
        info = _lstat(self._lower / clean_path(path))
        return None if info is None else mode_of(info)

    async def changes(self) -> tuple[FileChange, ...]:
        """Every difference from the base, sorted by path. New files that the base's .gitignore names, files
        over the size limit and what is neither file nor link are left out."""
        found = await asyncio.to_thread(lambda: {change.path: change for change in self.differences()})
        written = [path for path, change in found.items() if change.content is not None]
        new = [path for path in written if not self._in_base(path) and not self._beyond_link(path)]
        ignored = await self._ignored(new) if new else frozenset[str]()
        return tuple(found[path] for path in sorted(found) if path not in ignored)

    async def reset(self, changes: Sequence[FileChange] = ()) -> None:
        """Make the tree the base plus exactly these changes."""
        await asyncio.to_thread(self._rebuild, changes)

    def close(self) -> None:
        """Remove the workspace from the disk; closing again does nothing."""
        remove_tree(self.home)

    # --- looking up -----------------------------------------------------------------------------------

    def _find(self, cleaned: str) -> Path | None:
        """Where the tree's entry of this path lies, None when it has none; links on the way are refused."""
        return self._look_up(cleaned)[0]

    def _look_up(self, cleaned: str) -> tuple[Path | None, bool]:
        """As `_find`, and whether the base's folder of this path shows through."""
        upper, lower = self._upper, self._lower
        lower_seen = True
        found: Path | None = None
        parts = cleaned.split("/")
        for depth, part in enumerate(parts):
            upper, lower = upper / part, lower / part
            above = _lstat(upper)
            below = _lstat(lower) if lower_seen else None
            info = above or below
            found = upper if above is not None else lower
            if info is None or (above is not None and _is_whiteout(upper, above)):
                return None, False
            if stat.S_ISLNK(info.st_mode):
                raise PathRefused(f"{cleaned} goes through a symbolic link")
            if depth < len(parts) - 1 and not stat.S_ISDIR(info.st_mode):
                return None, False
            lower_seen = below is not None and stat.S_ISDIR(below.st_mode) and not _hides(upper, above)
        return found, lower_seen

    def _in_base(self, path: str) -> bool:
        return _lstat(self._lower / path) is not None

    def _beyond_link(self, path: str) -> bool:
        """Whether the base has a link where this path has a folder: git will not judge such a path."""
        above = (self._lower / parent for parent in Path(path).parents if parent != Path("."))
        return any(folder.is_symlink() for folder in above)

    def _make_parents(self, cleaned: str) -> None:
        """Folders above the path, in the upper tree. A whiteout in the way becomes an opaque folder."""
        here, lower_seen = self._upper, True
        for part in cleaned.split("/")[:-1]:
            here = here / part
            info = _lstat(here)
            lower_seen = lower_seen and not _hides(here, info)
            if info is not None and _is_whiteout(here, info):
                here.unlink()
                _make_opaque(here)
                lower_seen = False
            elif info is None:
                lower = _lstat(self._lower / here.relative_to(self._upper)) if lower_seen else None
                if lower is not None and not stat.S_ISDIR(lower.st_mode):
                    raise PathRefused(f"{cleaned} lies below a file")
                here.mkdir()
            elif not stat.S_ISDIR(info.st_mode):
                raise PathRefused(f"{cleaned} lies below a file")

    def _regular_files(self, inside: str, lower_seen: bool) -> Iterator[str]:
        upper, lower = self._upper / inside, self._lower / inside
        above = {entry.name: entry for entry in _scan(upper)}
        below = {entry.name: entry for entry in _scan(lower)} if lower_seen else {}
        for name in {**above, **below}:
            entry = above.get(name) or below[name]
            path = f"{inside}/{name}" if inside else name
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                if name not in SKIPPED_FOLDERS:
                    hidden = name in above and _hides(upper / name, info)
                    yield from self._regular_files(path, name in below and not hidden)
            elif stat.S_ISREG(info.st_mode) and not (name in above and _is_whiteout(upper / name, info)):
                yield path

    # --- differences ----------------------------------------------------------------------------------

    def differences(self, inside: str = "", lower_seen: bool = True) -> Iterator[FileChange]:
        """As `changes`, with what the base's .gitignore names; below a folder of the upper tree.
        `lower_seen` False: all of the base below it is hidden, so what is not above is deleted."""
        names = set()
        for entry in _scan(self._upper / inside):
            names.add(entry.name)
            path = f"{inside}/{entry.name}" if inside else entry.name
            yield from self._difference(path, entry.stat(follow_symlinks=False), lower_seen)
        if not lower_seen:
            for entry in _scan(self._lower / inside):
                if entry.name not in names:
                    path = f"{inside}/{entry.name}" if inside else entry.name
                    yield from self._deleted(path)

    def _difference(self, path: str, info: os.stat_result, lower_seen: bool) -> Iterator[FileChange]:
        upper, name = self._upper / path, path.rsplit("/", 1)[-1]
        if name.lower() == ".git":
            return
        if _is_whiteout(upper, info):
            yield from self._deleted(path)
        elif stat.S_ISDIR(info.st_mode):
            if name not in SKIPPED_FOLDERS:
                below = _lstat(self._lower / path)
                if below is not None and not stat.S_ISDIR(below.st_mode):
                    yield FileChange(path, None)
                yield from self.differences(path, lower_seen and not _hides(upper, info))
        elif stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
            yield from self._written(path, info)

    def _written(self, path: str, info: os.stat_result) -> Iterator[FileChange]:
        if info.st_size > self._max_file_bytes:
            return
        content, mode = _content(self._upper / path, info), mode_of(info)
        below = _lstat(self._lower / path)
        if below is not None and stat.S_ISDIR(below.st_mode):
            yield from self._deleted(path)
        elif below is not None and (_content(self._lower / path, below), mode_of(below)) == (content, mode):
            return
        yield FileChange(path, content, mode)

    def _deleted(self, path: str) -> Iterator[FileChange]:
        info = _lstat(self._lower / path)
        if info is None:
            return
        if not stat.S_ISDIR(info.st_mode):
            yield FileChange(path, None)
            return
        for entry in _scan(self._lower / path):
            yield from self._deleted(f"{path}/{entry.name}")

    async def _ignored(self, paths: Sequence[str]) -> frozenset[str]:
        """Those of the paths that the base's .gitignore files name."""
        if not self._ignore_git.is_dir():
            await self._make_ignore_git()
        asked = await run_git(
            self._lower,
            *("check-ignore", "--no-index", "-z", "--stdin"),
            stdin=b"".join(os.fsencode(path) + b"\0" for path in paths),
            env={"GIT_DIR": str(self._ignore_git), "GIT_WORK_TREE": str(self._lower)},
        )
        if asked.code not in (0, 1):
            raise RepositoryError(f"git check-ignore failed: {asked.message}")
        return frozenset(os.fsdecode(path) for path in asked.output.split(b"\0") if path)

    async def _make_ignore_git(self) -> None:
        """`check-ignore` wants some repository; the base checkout has none. Other workspaces may need it in
        this very moment, and a kill may come: it appears whole, under its name, or not at all."""
        draft = self.home / "ignore.git"
        made = await run_git(self.home, "init", "--quiet", "--bare", str(draft))
        if made.code != 0:
            raise RepositoryError(f"git init failed: {made.message}")
        try:
            draft.rename(self._ignore_git)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            remove_tree(draft)  # another was quicker

    # --- rebuilding -----------------------------------------------------------------------------------

    def _rebuild(self, changes: Sequence[FileChange]) -> None:
        for folder in (self._upper, self.home / "work"):
            remove_tree(folder)
            folder.mkdir(parents=True)
        # Deletions first: a deleted file may give way to a folder of its name.
        for change in sorted(changes, key=lambda change: (change.content is not None, change.path)):
            cleaned = clean_path(change.path)
            self._make_parents(cleaned)
            target = self._upper / cleaned
            info = _lstat(target)
            if change.content is None:
                if info is None and self._in_base(cleaned):
                    _make_whiteout(target)
                continue
            if info is not None and stat.S_ISDIR(info.st_mode):
                # Only whiteouts lie in it: the folder's files were deleted to make place for this one.
                shutil.rmtree(target)
            elif info is not None:
                target.unlink()
            write_entry(target, change.content, change.mode)


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _content(path: Path, info: os.stat_result) -> bytes:
    return os.fsencode(os.readlink(path)) if stat.S_ISLNK(info.st_mode) else path.read_bytes()


def _attribute(path: Path, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
            return None
        raise


def _is_whiteout(path: Path, info: os.stat_result) -> bool:
    if stat.S_ISCHR(info.st_mode):
        return info.st_rdev == 0
    return stat.S_ISREG(info.st_mode) and info.st_size == 0 and _attribute(path, _WHITEOUT) is not None


def _hides(path: Path, info: os.stat_result | None) -> bool:
    """Whether an upper folder hides the lower one. The value `x` only says that whiteouts lie in it."""
    if info is None or not stat.S_ISDIR(info.st_mode):
        return False
    return _attribute(path, _OPAQUE) == b"y"


def _make_opaque(folder: Path) -> None:
    folder.mkdir()
    os.setxattr(folder, _OPAQUE, b"y")


def _make_whiteout(target: Path) -> None:
    # Any user may make this one device; the kernel takes it as "nothing here".
    os.mknod(target, stat.S_IFCHR, os.makedev(0, 0))


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that lies in it, also what a command locked; none there: nothing happens."""
    if not folder.exists():
        return

    def unlock(function: object, path: str, error: object) -> None:
        # overlayfs leaves work/work without any permission, and a command may have locked its folders.
        os.chmod(os.path.dirname(path), 0o700)
        os.chmod(path, 0o700)
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)

    shutil.rmtree(folder, onerror=unlock)
