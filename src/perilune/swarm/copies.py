"""Commands over workspaces on machines that mount no overlays for us.

A workspace stays what it is, a base with changes above; for each command the whole tree is copied, the
command runs in the copy, and what it changed there becomes the workspace's changes. Slower than an overlay
by the size of the repository, and otherwise the same.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from perilune.agent.process import ProcessResult
from perilune.agent.sandbox import ProcessLimits, Sandbox, probe_machine
from perilune.agent.workspace import SKIPPED_FOLDERS, View
from perilune.swarm.repository import mode_of, write_entry
from perilune.swarm.workspaces import FileChange, OverlayWorkspace, remove_tree


def sandbox_of_this_machine(*, unsandboxed: bool) -> Sandbox:
    """What runs the commands of a session here. Never raises: `run` does, where there is no sandbox."""
    plain = Sandbox.probe(unsandboxed=unsandboxed)
    return plain if plain.overlay else CopyingSandbox(probe_machine(), unsandboxed=unsandboxed)


class CopyingSandbox(Sandbox):
    """A sandbox that takes overlay views without mounting them."""

    async def run(
        self,
        argv: Sequence[str],
        view: View,
        limits: ProcessLimits | None = None,
        *,
        env: Mapping[str, str] | None = None,
    ) -> ProcessResult:
        """As `Sandbox.run`. Killed half-way, the workspace is as it was before the command."""
        if view.lower is None:
            return await super().run(argv, view, limits, env=env)
        home, lower = view.upper.parent, view.lower
        tree = home / "tree"
        workspace = OverlayWorkspace.at(home, lower)
        await asyncio.to_thread(_lay_out, tree, lower, tuple(workspace.differences()))
        try:
            result = await super().run(argv, View(upper=tree), limits, env=env)
            changes = await asyncio.to_thread(lambda: tuple(_changes(tree, lower)))
            await workspace.reset(changes)
        finally:
            await asyncio.to_thread(remove_tree, tree)
        return result


def _lay_out(tree: Path, lower: Path, changes: Sequence[FileChange]) -> None:
    remove_tree(tree)
    shutil.copytree(lower, tree, symlinks=True)
    # Deletions first: a file may give way to a folder of its name, and the other way round.
    for change in sorted(changes, key=lambda change: (change.content is not None, change.path)):
        target = tree / change.path
        if change.content is None:
            target.unlink(missing_ok=True)
            continue
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_entry(target, change.content, change.mode)


def _changes(tree: Path, lower: Path) -> Iterator[FileChange]:
    """What differs between a tree and its base."""
    now, before = dict(_files(tree)), dict(_files(lower))
    for path in before:
        if path not in now:
            yield FileChange(path, None)
    for path, info in now.items():
        old = before.get(path)
        if old is not None and _same_stat(info, old):
            continue  # the copy kept the time of what nobody touched
        content, mode = _content(tree / path, info), mode_of(info)
        if old is None or (_content(lower / path, old), mode_of(old)) != (content, mode):
            yield FileChange(path, content, mode)


def _files(top: Path) -> Iterator[tuple[str, os.stat_result]]:
    for here, folders, names in os.walk(top):
        links = [name for name in folders if os.path.islink(os.path.join(here, name))]
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and name not in links]
        for name in (*names, *links):
            full = os.path.join(here, name)
            info = os.lstat(full)
            if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
                yield os.path.relpath(full, top), info


def _same_stat(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_mode, one.st_size, one.st_mtime_ns) == (other.st_mode, other.st_size, other.st_mtime_ns)


def _content(path: Path, info: os.stat_result) -> bytes:
    return os.fsencode(os.readlink(path)) if stat.S_ISLNK(info.st_mode) else path.read_bytes()
