"""Merging the sub-agents' changes onto one branch, without a checkout.

An assignment's changes become a commit on its base, a pure function of base, changes, message and date: made
twice it has the same id. That commit is merged three-way with the branch's tip in memory, and the branch
moves by compare-and-swap. Until that one step nothing is visible, after it everything is, so a kill at any
moment leaves a branch that is right; calling again does what is missing and nothing twice.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass

from perilune.errors import MergeConflict, RepositoryError
from perilune.swarm.repository import IDENTITY, GitResult, Repository
from perilune.swarm.workspaces import FileChange

SWAP_TRIES = 10
LOCK_TRIES, LOCK_PAUSE_S = 5, 0.2
_MODES = frozenset({"100644", "100755", "120000"})
_NO_NAMES = frozenset({"", ".", "..", ".git"})
"""fast-import takes some of them; a tree that holds one cannot be checked out, or should not."""


@dataclass(frozen=True)
class Merged:
    """What a merge came to: the branch's tip that holds the commit, and whether this call moved it."""

    tip: str
    moved: bool


class Merger:
    """The one writer of a session's branch. `when` is seconds since 1970; replaying gives the same ids."""

    def __init__(self, repository: Repository, branch: str, base: str | None = None) -> None:
        self._repository = repository
        self.branch = branch
        self.ref = f"refs/heads/{branch}"
        self.base = base or repository.base_commit
        self._turn = asyncio.Lock()
        self._tip: str | None = None
        self._merged: set[str] = set()
        self._imports = 0

    async def create(self, tip: str | None = None) -> str:
        """Make the branch at `tip` (the base by default), or take it up where it stands. Returns its tip.

        Raises RepositoryError for a name git refuses, the branch the user is on, or one without `tip`: it
        is of other origin, or somebody moved it back behind what was merged."""
        tip = tip or self.base
        named = await self._repository.git("check-ref-format", "--branch", self.branch)
        if named.code != 0:
            raise RepositoryError(f"{self.branch!r} is no branch name", mend="choose another name")
        if self.ref == self._repository.current_branch:
            raise RepositoryError(f"{self.branch} is checked out", mend="choose a branch of its own")
        found = await self._read_tip()
        if found is None:
            made = await self._swap(tip, "0" * len(tip))
            found = await self._read_tip()
            if found is None:
                raise RepositoryError(f"cannot create branch {self.branch}: {made.message}")
        related = await self._repository.git("merge-base", "--is-ancestor", tip, found)
        if related.code != 0:
            raise RepositoryError(
                f"branch {self.branch} exists and does not hold {tip[:12]}", mend="delete or rename it"
            )
        return found

    async def tip(self) -> str:
        """The branch's commit now. Raises RepositoryError where the branch does not exist."""
        found = await self._read_tip()
        if found is None:
            raise RepositoryError(f"branch {self.branch} does not exist", mend="start the session again")
        return found

    async def commit(
        self, changes: Sequence[FileChange], message: str, when: int, *, base: str | None = None
    ) -> str:
        """The assignment's changes as a commit on `base` (the session's by default); no ref points to it.
        Without changes it is the base itself. Raises RepositoryError where git refuses a path or mode."""
        base = base or self.base
        if not changes:
            return base
        # Unique per process and call: two imports at once must not meet on one name. It never reaches
        # the disk, for the stream takes it back before its end.
        self._imports += 1
        scratch = f"refs/perilune/import-{os.getpid()}-{self._imports}"
        stream = _import_stream(scratch, base, changes, message, when)
        answer = await self._repository.must("fast-import", "--quiet", "--done", stdin=stream)
        return answer.decode().strip()

    async def merge(self, commit: str, message: str, when: int) -> Merged:
        """Bring the commit onto the branch. Merged already: nothing happens, `moved` is False.

        Raises MergeConflict with the paths; RepositoryError when the branch keeps moving under us."""
        async with self._turn:
            for _ in range(SWAP_TRIES):
                if self._tip is None:
                    # Not left by ourselves: earlier runs may have merged this commit, or a later one.
                    self._tip = await self.tip()
                    listed = await self._repository.must("rev-list", self._tip, f"^{self.base}")
                    self._merged = set(listed.decode().split())
                tip = self._tip
                if commit == self.base or commit in self._merged:
                    return Merged(tip, moved=False)
                new = await self._join(tip, commit, message, when)
                swapped = await self._swap(new, tip)
                if swapped.code == 0:
                    self._tip = new
                    self._merged.add(commit)
                    return Merged(new, moved=True)
                self._tip = None
            raise RepositoryError(
                f"branch {self.branch} keeps moving: {swapped.message}", mend="stop who else writes it"
            )

    async def apply(self, changes: Sequence[FileChange], message: str, when: int) -> Merged:
        """Commit and merge in one call."""
        return await self.merge(await self.commit(changes, message, when), message, when)

    async def _swap(self, new: str, old: str) -> GitResult:
        """Move the branch from `old` to `new`. A git that was killed leaves its lock behind; nobody but this
        session writes the branch, so a lock that outlasts a second belongs to no one and is removed."""
        for last in (False,) * LOCK_TRIES + (True,):
            swapped = await self._repository.git("update-ref", "--no-deref", self.ref, new, old)
            if swapped.code == 0 or ".lock" not in swapped.message:
                break
            if not last:
                await asyncio.sleep(LOCK_PAUSE_S)
                continue
            lock = await self._repository.must("rev-parse", "--git-path", f"{self.ref}.lock")
            (self._repository.root / os.fsdecode(lock).removesuffix("\n")).unlink(missing_ok=True)
            swapped = await self._repository.git("update-ref", "--no-deref", self.ref, new, old)
        return swapped

    async def _join(self, tip: str, commit: str, message: str, when: int) -> str:
        """A commit that joins both; nothing refers to it yet. Raises MergeConflict."""
        merged = await self._repository.git(
            "merge-tree", "--write-tree", "-z", "--name-only", "--no-messages", tip, commit
        )
        parts = merged.output.split(b"\0")
        if merged.code == 1:
            paths = tuple(os.fsdecode(part) for part in parts[1:] if part)
            raise MergeConflict(f"conflict in {', '.join(paths)}", paths=paths)
        if merged.code != 0:
            raise RepositoryError(f"git merge-tree failed: {merged.message}")
        date = f"{when} +0000"
        made = await self._repository.must(
            *("commit-tree", parts[0].decode().strip(), "-p", tip, "-p", commit),
            stdin=message.encode(),
            env={"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date},
        )
        return made.decode().strip()

    async def _read_tip(self) -> str | None:
        found = await self._repository.git("rev-parse", "--verify", "--quiet", f"{self.ref}^{{commit}}")
        return found.output.decode().strip() if found.code == 0 else None


def _import_stream(scratch: str, base: str, changes: Sequence[FileChange], message: str, when: int) -> bytes:
    person = f"{IDENTITY['GIT_AUTHOR_NAME']} <{IDENTITY['GIT_AUTHOR_EMAIL']}> {when} +0000"
    parts = [
        f"commit {scratch}\nmark :1\nauthor {person}\ncommitter {person}\n".encode(),
        _data(message.encode()),
        f"from {base}\n".encode(),
    ]
    # Deletions first: a file may give way to a folder of its name, and the other way round.
    for change in sorted(changes, key=lambda change: (change.content is not None, change.path)):
        if not _NO_NAMES.isdisjoint(change.path.lower().split("/")):
            raise RepositoryError(f"{change.path!r} is no path in a tree", mend="files and links only")
        name = _quoted(change.path)
        if change.content is None:
            parts.append(b"D " + name + b"\n")
        elif change.mode not in _MODES:
            raise RepositoryError(f"{change.path} has mode {change.mode}", mend="files and links only")
        else:
            parts.append(b"M " + change.mode.encode() + b" inline " + name + b"\n" + _data(change.content))
    parts.append(f"get-mark :1\nreset {scratch}\nfrom {'0' * len(base)}\n\ndone\n".encode())
    return b"".join(parts)


def _data(content: bytes) -> bytes:
    return b"data %d\n" % len(content) + content + b"\n"


def _quoted(path: str) -> bytes:
    raw = os.fsencode(path)
    for plain, escaped in ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n")):
        raw = raw.replace(plain, escaped)
    return b'"' + raw + b'"'
