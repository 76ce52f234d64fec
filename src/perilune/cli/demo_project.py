"""The demonstration's project: a copy of the example in HOME, made a git repository, and its own tests.

Nothing of the user's is touched, and nothing here is ever deleted: starting anew makes the next copy.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from perilune.errors import InputError, RepositoryError

if TYPE_CHECKING:
    from perilune.agent.sandbox import Sandbox
    from perilune.swarm.repository import Repository

GOAL = "Rename StateVector to OrbitState in orrery."
"""What the example project is for; `examples/make_project.py` says the same."""
TESTS = ("python3", "-m", "unittest", "-q")
SKIPPED = shutil.ignore_patterns(".git", "__pycache__", "*.pyc")


@dataclass(frozen=True)
class MergedTests:
    passed: bool
    summary: str
    """The last lines of what the tests printed."""
    folder: Path


async def prepare(project: Path, folder: Path, *, fresh: bool) -> tuple[Path, bool]:
    """The copy to work on, and whether it is new. `fresh` makes another one beside the last.

    Raises InputError for a project that is not there, RepositoryError when git fails."""
    if not project.is_dir():
        raise InputError(f"{project} is no folder", field="project", mend="make project, or name another")
    copies = existing(project, folder)
    if copies and not fresh:
        return copies[-1], False
    number = len(copies) + 1
    dest = folder / (project.name if number == 1 else f"{project.name}-{number}")
    draft = folder / f".{dest.name}.draft"
    shutil.rmtree(draft, ignore_errors=True)  # a start that was killed left it half done
    shutil.copytree(project, draft, ignore=SKIPPED)
    await make_repository(draft)
    draft.rename(dest)
    return dest, True


def existing(project: Path, folder: Path) -> list[Path]:
    """Copies made so far, oldest first."""
    found = []
    path = folder / project.name
    while path.is_dir():
        found.append(path)
        path = folder / f"{project.name}-{len(found) + 1}"
    return found


async def make_repository(folder: Path) -> None:
    from perilune.swarm.repository import run_git

    for command in (
        ("init", "-q", "-b", "main"),
        ("add", "-A"),
        ("commit", "-q", "-m", "The example as it is"),
    ):
        done = await run_git(folder, *command)
        if done.code != 0:
            raise RepositoryError(f"git {command[0]} failed in {folder}: {done.message}")


async def run_tests(repository: Repository, commit: str, folder: Path, sandbox: Sandbox) -> MergedTests:
    """The project's own tests on a commit, in a checkout of their own, in the sandbox.

    Raises SandboxError when commands cannot be isolated."""
    from perilune.agent.workspace import View

    place = await repository.export(commit, folder / commit[:12])
    result = await sandbox.run(TESTS, View(upper=place))
    lines = [line for line in result.output.strip().splitlines() if line.strip("- ")]
    return MergedTests(result.exit_code == 0, ", ".join(lines[-2:]), place)
