"""Small real sessions for the tests of the swarm: a git repository, a scripted model, a journal that dies."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from perilune.backends.base import Backend, ModelEntry
from perilune.backends.scripted import ScriptedBackend
from perilune.settings import Settings
from perilune.swarm.events import Entry
from perilune.swarm.journal import Journal
from perilune.swarm.model_calls import Patience
from perilune.swarm.session import Outcome, Plan, SessionSpec, journal_path, plan_session, run_session

GOAL = "Rename load_config to read_config in src."
FILES = {
    "src/app.py": "from conf import load_config\n\nprint(load_config())\n",
    "src/conf.py": "def load_config():\n    return {}\n",
    "src/util.py": "reload_config = 1\n",
    "README.md": "Call load_config.\n",
}
RENAMED = {
    path: text.replace(" load_config", " read_config").replace("(load_config", "(read_config")
    if path.startswith("src/")
    else text
    for path, text in FILES.items()
}
AT_ONCE = Patience(first_s=0.0, longest_s=0.0, tries=4)


def git(repo: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", *args],
        cwd=repo,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def make_repo(folder: Path, files: Mapping[str, str] = FILES) -> Path:
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "start")
    return folder


def files_at(repo: Path, commit: str) -> dict[str, str]:
    names = git(repo, "ls-tree", "-r", "--name-only", commit).splitlines()
    return {
        name: subprocess.run(
            ["git", "show", f"{commit}:{name}"], cwd=repo, check=True, capture_output=True, text=True
        ).stdout
        for name in names
    }


def tree_of(repo: Path, commit: str) -> str:
    return git(repo, "rev-parse", f"{commit}^{{tree}}")


def task_commits(repo: Path, base: str, tip: str) -> list[str]:
    """The tasks whose own commits (not the joins) lie between, each as often as it was committed."""
    lines = git(
        repo, "log", "--no-merges", "--format=%(trailers:key=Perilune-Task,valueonly)", f"{base}..{tip}"
    )
    return sorted(line for line in lines.splitlines() if line)


class Crash(Exception):
    """Stands for the end of the process."""


class DyingJournal:
    """Keeps `left` more entries, then the process is gone: nothing is written and nobody goes on."""

    def __init__(self, journal: Journal, left: int) -> None:
        self._journal = journal
        self._left = left

    async def append(self, entries: Sequence[Entry]) -> None:
        kept = entries[: self._left]
        self._left -= len(kept)
        if kept:
            await self._journal.append(kept)
        if len(kept) < len(entries):
            raise Crash


class Bench:
    """One HOME, one repository, one backend."""

    def __init__(
        self, folder: Path, backend: Backend | None = None, files: Mapping[str, str] = FILES
    ) -> None:
        self.repo = make_repo(folder / "repo", files)
        self.base = git(self.repo, "rev-parse", "HEAD")
        self.home = folder / "home"
        self.settings = Settings(home=self.home)
        self.backend = backend or ScriptedBackend()

    async def plan(self, goal: str = GOAL, **wanted: object) -> Plan:
        spec = SessionSpec(goal, self.repo, **wanted)  # type: ignore[arg-type]
        return await plan_session(spec, backend=self.backend, settings=self.settings)

    async def run(self, session: Plan | str, backend: Backend | None = None, **how: object) -> Outcome:
        return await run_session(
            self.home,
            session,
            backend=backend or self.backend,
            settings=self.settings,
            patience=AT_ONCE,
            **how,  # type: ignore[arg-type]
        )

    def journal(self, plan: Plan) -> Path:
        return journal_path(self.home, plan.id)


def code_entry(model: str = "scripted-code") -> ModelEntry:
    """A scripted model that takes any goal, with the profiles of a real one."""
    return ModelEntry(
        id=model, backend="scripted", context_length=262144, max_output_tokens=4096, goals="any"
    )
