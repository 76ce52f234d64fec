"""The user's repository, as the supervisor sees it: read anything, write only objects and one branch.

Nothing here touches the working tree, the index or the branch the user is on. Every git process runs
without the caller's GIT_* variables, without hooks, prompts, background maintenance or optional locks.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perilune.errors import RepositoryError

OLDEST_GIT = (2, 38)
"""`merge-tree --write-tree` came with it."""

KILLED_TRIES = 3

_SETTINGS = (
    *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false"),
    *("-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "gc.autoDetach=false"),
    *("-c", "merge.directoryRenames=false", "-c", "protocol.allow=never"),
)
IDENTITY = {
    f"GIT_{role}_{part}": value
    for role in ("AUTHOR", "COMMITTER")
    for part, value in (("NAME", "Perilune"), ("EMAIL", "perilune@localhost"))
}
SYMLINK, EXECUTABLE, REGULAR, SUBMODULE = "120000", "100755", "100644", "160000"
_COMPLETE = ".perilune-complete"


@dataclass(frozen=True)
class GitResult:
    code: int
    output: bytes
    message: str
    """Standard error, stripped."""


@dataclass(frozen=True)
class TreeEntry:
    """One file of a commit. `mode` is git's: 100644, 100755, 120000 (link) or 160000 (submodule)."""

    mode: str
    oid: str
    path: str


def git_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without its GIT_* variables, which would point git elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    fixed = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", "GIT_EDITOR": "false"}
    return {**kept, **fixed, **IDENTITY, **extra}


async def run_git(
    folder: Path, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> GitResult:
    """Run git in a folder. Raises RepositoryError only where git itself cannot be started."""
    try:
        process = await asyncio.create_subprocess_exec(
            *("git", *_SETTINGS, *args),
            cwd=folder,
            env=git_environment(env or {}),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        if not folder.is_dir():
            raise RepositoryError(f"{folder} is not a directory", mend="check the path") from None
        raise RepositoryError("git is not installed", mend="install git 2.38 or later") from None
    except NotADirectoryError:
        raise RepositoryError(f"{folder} is not a directory", mend="check the path") from None
    try:
        output, errors = await process.communicate(stdin)
    except asyncio.CancelledError:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    return GitResult(process.returncode or 0, output, errors.decode("utf-8", "replace").strip())


class Repository:
    """A git repository with a clean working tree, at the commit it had when it was opened."""

    def __init__(self, root: Path, git_dir: Path, base_commit: str, branch: str | None) -> None:
        self.root = root
        self.git_dir = git_dir
        self.base_commit = base_commit
        self.current_branch = branch
        """Full name of the user's branch (refs/heads/...), None when HEAD is detached."""

    @classmethod
    async def open(cls, path: Path | str, *, base: str | None = None) -> Repository:
        """The repository that holds `path`. `base` names a commit to start from, HEAD by default; with
        it the working tree may be dirty (a session that resumes starts from its own recorded commit).

        Raises RepositoryError with the mend: not git, bare, no commit, uncommitted changes, old git."""
        folder = Path(path).expanduser().absolute()
        await _check_version(folder)
        root, git_dir = await _locate(folder)
        head = await run_git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        if head.code != 0:
            raise RepositoryError(f"{root} has no commit yet", mend="git add, then git commit")
        if base is None:
            await _refuse_dirty(root)
            commit = head.output.decode().strip()
        else:
            found = await run_git(root, "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
            if found.code != 0:
                raise RepositoryError(f"{root} has no commit {base}", mend="name a commit that exists")
            commit = found.output.decode().strip()
        branch = await run_git(root, "symbolic-ref", "--quiet", "HEAD")
        name = branch.output.decode().strip() if branch.code == 0 else None
        return cls(root, git_dir, commit, name)

    async def git(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> GitResult:
        """Any git command on this repository; the exit code is the caller's to judge. A git that somebody
        killed is started again: every command here may run twice."""
        place = {"GIT_DIR": str(self.git_dir), **(env or {})}
        for _ in range(KILLED_TRIES):
            done = await run_git(self.root, *args, stdin=stdin, env=place)
            if done.code >= 0:
                break
        return done

    async def must(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
        """A git command that has to succeed. Raises RepositoryError with git's own message."""
        done = await self.git(*args, stdin=stdin, env=env)
        if done.code != 0:
            raise RepositoryError(f"git {args[0]} failed: {done.message or f'exit code {done.code}'}")
        return done.output

    async def entries(self, commit: str, under: str = "") -> tuple[TreeEntry, ...]:
        """All files of a commit below a folder (the whole tree for ""), sorted by path."""
        folder = under.strip("/")
        scope = ["--", f"{folder}/"] if folder not in ("", ".") else []
        listing = await self.must("--literal-pathspecs", "ls-tree", "-r", "-z", "--full-tree", commit, *scope)
        found = []
        for line in listing.split(b"\0")[:-1]:
            head, _, name = line.partition(b"\t")
            mode, _, oid = head.decode().split(" ")
            found.append(TreeEntry(mode, oid, os.fsdecode(name)))
        return tuple(sorted(found, key=lambda entry: entry.path))

    async def tracked_files(self, commit: str, under: str = "") -> tuple[str, ...]:
        """Paths of the regular files of a commit below a folder, sorted; no links, no submodules."""
        entries = await self.entries(commit, under)
        return tuple(entry.path for entry in entries if entry.mode in (REGULAR, EXECUTABLE))

    async def read_blobs(self, oids: Sequence[str]) -> list[bytes]:
        """The contents of these objects, in order, by one git process."""
        if not oids:
            return []
        answer = await self.must("cat-file", "--batch", stdin="".join(f"{oid}\n" for oid in oids).encode())
        contents, at = [], 0
        for oid in oids:
            line = answer.index(b"\n", at)
            header = answer[at:line].split(b" ")
            if len(header) != 3:
                raise RepositoryError(f"object {oid} is missing", mend="git fsck; fetch what is missing")
            size = int(header[2])
            contents.append(answer[line + 1 : line + 1 + size])
            at = line + 1 + size + 1
        return contents

    async def read_files(self, commit: str, paths: Collection[str]) -> dict[str, bytes]:
        """Contents of these paths in a commit; paths it does not have are left out."""
        wanted = set(paths)
        entries = [e for e in await self.entries(commit) if e.path in wanted and e.mode != SUBMODULE]
        contents = await self.read_blobs([entry.oid for entry in entries])
        return {entry.path: content for entry, content in zip(entries, contents, strict=True)}

    async def export(self, commit: str, dest: Path) -> Path:
        """Write the commit's files into `dest`, exactly as committed: no filter, no line-ending change,
        no program of the repository runs. Submodules are left out. Complete or absent: an earlier try
        that was killed is done again, a complete one is kept."""
        marker = _marker(dest)
        if dest.is_dir() and marker.is_file() and marker.read_text() == commit:
            return dest
        discard_export(dest)
        entries = [entry for entry in await self.entries(commit) if entry.mode != SUBMODULE]
        contents = await self.read_blobs([entry.oid for entry in entries])
        await asyncio.to_thread(_write_tree, dest, entries, contents)
        marker.write_text(commit)
        return dest

    async def diff(self, base: str, tip: str) -> str:
        """The unified diff between two commits."""
        plain = ("--no-color", "--no-ext-diff", "--no-textconv")
        return (await self.must("diff", *plain, base, tip, "--")).decode("utf-8", "replace")

    async def notes(self) -> tuple[str, ...]:
        """What a session should know before it starts: submodules, LFS pointers, untracked files."""
        entries = await self.entries(self.base_commit)
        notes = []
        submodules = [entry.path for entry in entries if entry.mode == SUBMODULE]
        if submodules:
            notes.append(f"submodules are left out: {', '.join(submodules)}")
        attributes = [e.oid for e in entries if e.path.rsplit("/", 1)[-1] == ".gitattributes"]
        if any(re.search(rb"filter=lfs", content) for content in await self.read_blobs(attributes)):
            notes.append("Git LFS files appear as their pointers")
        status = await run_git(self.root, "status", "--porcelain", "-z", "--untracked-files=normal")
        if any(line.startswith(b"?? ") for line in status.output.split(b"\0")):
            notes.append("untracked files are not part of the work")
        return tuple(notes)


async def _check_version(folder: Path) -> None:
    text = (await run_git(folder if folder.is_dir() else Path("/"), "--version")).output.decode()
    found = re.search(r"(\d+)\.(\d+)", text)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_GIT:
        raise RepositoryError(f"{text.strip() or 'this git'} is too old", mend="install git 2.38 or later")


async def _locate(folder: Path) -> tuple[Path, Path]:
    if not folder.is_dir():
        raise RepositoryError(f"{folder} is not a directory", mend="check the path")
    asked = await run_git(folder, "rev-parse", "--is-bare-repository", "--absolute-git-dir")
    if asked.code != 0:
        if "dubious ownership" in asked.message:
            raise RepositoryError(
                f"{folder} belongs to another user", mend=f"git config --global --add safe.directory {folder}"
            )
        raise RepositoryError(f"{folder} is not a git repository", mend="git init, git add, git commit")
    bare, git_dir = os.fsdecode(asked.output).split("\n")[:2]
    if bare == "true":
        raise RepositoryError(f"{folder} is a bare repository", mend="give a clone of it: git clone")
    top = await run_git(folder, "rev-parse", "--show-toplevel")
    if top.code != 0:
        raise RepositoryError(f"{folder} is inside a .git folder", mend="give the working tree's folder")
    return Path(os.fsdecode(top.output).removesuffix("\n")), Path(git_dir)


async def _refuse_dirty(root: Path) -> None:
    status = await run_git(root, "status", "--porcelain", "-z", "--untracked-files=no")
    if status.code != 0:
        raise RepositoryError(f"git status failed: {status.message}", mend="git fsck")
    changed = [os.fsdecode(line[3:]) for line in status.output.split(b"\0") if line[2:3] == b" "]
    if changed:
        shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise RepositoryError(f"{root} has uncommitted changes: {shown}", mend="git commit or git stash")


def discard_export(dest: Path) -> None:
    """Remove what `export` wrote. The mark that it is complete goes first: a kill on the way leaves a tree
    that is written again."""
    _marker(dest).unlink(missing_ok=True)
    _remove(dest)


def _marker(dest: Path) -> Path:
    return dest.with_name(f"{dest.name}{_COMPLETE}")


def _remove(folder: Path) -> None:
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _write_tree(dest: Path, entries: Sequence[TreeEntry], contents: Sequence[bytes]) -> None:
    dest.mkdir(parents=True)
    made = {dest}
    for entry, content in zip(entries, contents, strict=True):
        target = dest / entry.path
        if target.parent not in made:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.add(target.parent)
        write_entry(target, content, entry.mode)


def write_entry(target: Path, content: bytes, mode: str) -> None:
    """Put one file of a tree on disk; a link's content is its target. The parent folder must exist."""
    if mode == SYMLINK:
        os.symlink(content, os.fsencode(target))
        return
    target.write_bytes(content)
    target.chmod(0o755 if mode == EXECUTABLE else 0o644)


def mode_of(info: os.stat_result) -> str:
    """Git's mode of a file on disk."""
    if stat.S_ISLNK(info.st_mode):
        return SYMLINK
    return EXECUTABLE if info.st_mode & stat.S_IXUSR else REGULAR
