"""The checkouts that workspaces lie over: one per base commit, written once, never changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path

from perilune.swarm.repository import Repository, discard_export
from perilune.swarm.workspaces import Workspaces, remove_tree

NAME_LENGTH = 16


class Bases:
    """Checkouts of a session, below its folder. What is lost or half-written is made again."""

    def __init__(self, root: Path, repository: Repository) -> None:
        self._root = root
        self._repository = repository
        self._turn = asyncio.Lock()
        self._ready: dict[str, Path] = {}

    async def checkout(self, commit: str) -> Path:
        """The folder that holds this commit's files. Raises RepositoryError."""
        async with self._turn:
            if commit not in self._ready:
                self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
                folder = self._root / f"base-{commit[:NAME_LENGTH]}"
                self._ready[commit] = await self._repository.export(commit, folder)
            return self._ready[commit]

    async def workspaces(self, commit: str) -> Workspaces:
        return Workspaces(self._root / "work", await self.checkout(commit))

    async def keep_only(self, needed: Callable[[], Collection[str]]) -> None:
        """Remove the checkouts that nothing lies over any more. `needed` is asked when nobody can take a
        checkout: one that is asked for later is made again."""
        async with self._turn:
            kept = needed()
            for commit in [known for known in self._ready if known not in kept]:
                await asyncio.to_thread(discard_export, self._ready.pop(commit))

    async def remove(self) -> None:
        """Remove everything: the session is over."""
        self._ready.clear()
        await asyncio.to_thread(remove_tree, self._root)
