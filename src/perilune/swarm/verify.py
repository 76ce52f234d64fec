"""Judging an assignment's changes before they are merged. A verifier accepts or rejects; it never mends.

Here is also the goal the bundled model understands, `Rename OLD to NEW in DIR.`: its one reading, and the
check against the repository that refuses what cannot end well before anything is spent.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from perilune.agent.sandbox import ProcessLimits, Sandbox
from perilune.agent.tools.rename import hits, syntax_problem, word_pattern
from perilune.agent.workspace import PathRefused, clean_folder
from perilune.errors import GoalRefused
from perilune.swarm.repository import Repository
from perilune.swarm.workspaces import FileChange, OverlayWorkspace, Workspaces

CONNECT = "perilune connect URL gives other goals to a model of your own"
_GOAL = re.compile(r"\s*Rename\s+(\S+)\s+to\s+(\S+)\s+in\s+(\S+?)\.?\s*")
_SHOWN_OUTPUT = 400


@dataclass(frozen=True)
class RenameGoal:
    """`Rename OLD to NEW in DIRECTORY.`; the directory without a closing slash, "" for the whole tree."""

    old: str
    new: str
    directory: str

    @property
    def clause(self) -> str:
        """What a sub-agent is told."""
        return f"Rename {self.old} to {self.new}."

    @property
    def sentence(self) -> str:
        """What the orchestrator is told: the one spelling its model was taught, whatever the user typed."""
        return f"Rename {self.old} to {self.new} in {self.directory}."


@dataclass(frozen=True)
class RenameScope:
    """What the goal comes to in this repository."""

    files: tuple[str, ...]
    """All .py files of the directory, sorted."""
    hits: Mapping[str, int]
    """How many lines hold OLD as a whole word, for those that have one."""

    @property
    def affected(self) -> tuple[str, ...]:
        """The files that hold OLD, sorted."""
        return tuple(self.hits)


def parse_rename_goal(goal: str) -> RenameGoal:
    """Read the canonical goal. Raises GoalRefused, with the mend, for any other wording."""
    found = _GOAL.fullmatch(goal)
    if found is None:
        raise GoalRefused(
            "perilune-nano understands one goal: Rename OLD to NEW in DIR.", field="goal", mend=CONNECT
        )
    old, new, directory = found.groups()
    for name in (old, new):
        if not (name.isascii() and name.isidentifier()):
            raise GoalRefused(f"{name} is not a name in Python", field="goal", mend="use an identifier")
        if keyword.iskeyword(name):
            raise GoalRefused(f"{name} is a keyword of Python", field="goal", mend="use another name")
    if old == new:
        raise GoalRefused(f"{old} is its own new name", field="goal", mend="give two different names")
    try:
        return RenameGoal(old, new, clean_folder(directory))
    except PathRefused as error:
        raise GoalRefused(str(error), field="goal", mend="name a folder inside the repository") from None


async def check_rename_goal(goal: RenameGoal, repository: Repository) -> RenameScope:
    """The files the goal concerns, from the base commit. Raises GoalRefused: no such directory, no .py file,
    OLD nowhere, NEW in use already, a file that is not UTF-8 or does not parse, the whole tree, a path with
    a space: agents copy the directory and paths word by word, so these two they could never name."""
    if not goal.directory:
        raise GoalRefused(
            "the whole repository cannot be named", field="goal", mend="name one of its folders"
        )
    base, shown = repository.base_commit, goal.directory
    tracked = await repository.tracked_files(base, goal.directory)
    if not tracked:
        raise GoalRefused(f"no directory {shown}", field="goal", mend="name a folder with committed files")
    files = tuple(path for path in tracked if path.endswith(".py"))
    if not files:
        raise GoalRefused(f"{shown} holds no .py file", field="goal", mend="name a folder of Python files")
    spaced = next((path for path in files if len(path.split()) != 1), None)
    if spaced is not None:
        raise GoalRefused(
            f"{spaced!r} has a space in its path", field="goal", mend="rename it, or name a folder without it"
        )
    contents = await repository.read_files(base, files)
    found = {}
    for path in files:
        text = _parsed(path, contents[path])
        if word_pattern(goal.new).search(text):
            raise GoalRefused(
                f"{goal.new} is used already in {path}", field="goal", mend="choose a new name that is free"
            )
        if lines := hits(text, goal.old):
            found[path] = len(lines)
    if not found:
        raise GoalRefused(f"{goal.old} is nowhere in {shown}", field="goal", mend="check the name")
    return RenameScope(files, found)


def _parsed(path: str, content: bytes) -> str:
    """The text of a file. Raises GoalRefused that names it."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise GoalRefused(f"{path} is not UTF-8 text", field="goal", mend="convert or move it") from None
    problem = syntax_problem(text)
    if problem is not None:
        raise GoalRefused(f"{path} does not parse: {problem}", field="goal", mend="mend and commit it first")
    return text


@dataclass(frozen=True)
class Submission:
    """What a sub-agent hands in: its prompt (the assigned path, for a rename) and its changes."""

    assignment_id: str
    attempt: int
    prompt: str
    changes: tuple[FileChange, ...]
    workspace: OverlayWorkspace


@dataclass(frozen=True)
class Verdict:
    accepted: bool
    reason: str = ""
    """Why not, in one line."""


ACCEPTED = Verdict(True)


class Verifier(Protocol):
    async def verify(self, submission: Submission) -> Verdict: ...


class RenameVerifier:
    """Accepts only the assigned file, with every whole-word OLD made NEW and not a byte else changed."""

    def __init__(self, goal: RenameGoal) -> None:
        self._goal = goal

    async def verify(self, submission: Submission) -> Verdict:
        path, goal = submission.prompt, self._goal
        others = [change.path for change in submission.changes if change.path != path]
        if others:
            return Verdict(False, f"{others[0]} is not the assigned file")
        if goal.directory and not path.startswith(f"{goal.directory}/"):
            return Verdict(False, f"{path} is not in {goal.directory}")
        try:
            base = submission.workspace.read_base(path)
        except PathRefused as error:
            return Verdict(False, str(error))
        if base is None:
            return Verdict(False, f"no file {path}")
        after = submission.changes[0] if submission.changes else FileChange(path, base)
        if after.content is None:
            return Verdict(False, f"{path} was deleted")
        if submission.changes and after.mode != submission.workspace.base_mode(path):
            return Verdict(False, f"{path} has another mode")
        return _judge_rename(goal, path, base, after.content)


def _judge_rename(goal: RenameGoal, path: str, base: bytes, content: bytes) -> Verdict:
    try:
        before, after = base.decode("utf-8"), content.decode("utf-8")
    except UnicodeDecodeError:
        return Verdict(False, f"{path} is not UTF-8 text")
    left = len(word_pattern(goal.old).findall(after))
    if left:
        return Verdict(False, f"{goal.old} is left {left} times in {path}")
    if after != word_pattern(goal.old).sub(goal.new, before):
        return Verdict(False, f"more than {goal.old} changed in {path}")
    problem = syntax_problem(after)
    if problem is not None:
        return Verdict(False, f"{path} does not parse: {problem}")
    return ACCEPTED


class CommandVerifier:
    """Accepts where a command of the project ends with 0, run in the sandbox over base plus changes.

    It runs in a workspace of its own, so that what the command writes never joins the changes. Raises
    SandboxError when nothing can be run: that is no verdict on the work."""

    def __init__(
        self,
        argv: Sequence[str],
        sandbox: Sandbox,
        workspaces: Workspaces,
        limits: ProcessLimits | None = None,
    ) -> None:
        self._argv = tuple(argv)
        self._sandbox = sandbox
        self._workspaces = workspaces
        self._limits = limits

    async def verify(self, submission: Submission) -> Verdict:
        scratch = self._workspaces.open(f"{submission.assignment_id}.verify", submission.attempt)
        try:
            await scratch.reset(submission.changes)
            done = await self._sandbox.run(self._argv, scratch.view, self._limits)
        finally:
            scratch.close()
        if done.exit_code == 0 and not done.timed_out:
            return ACCEPTED
        ended = "ran out of time" if done.timed_out else f"ended with {done.exit_code}"
        return Verdict(False, f"{' '.join(self._argv)} {ended}: {done.output.strip()[-_SHOWN_OUTPUT:]}")


class VerifierChain:
    """Accepts what all accept; the first that does not decides."""

    def __init__(self, verifiers: Sequence[Verifier]) -> None:
        self._verifiers = tuple(verifiers)

    async def verify(self, submission: Submission) -> Verdict:
        for verifier in self._verifiers:
            verdict = await verifier.verify(submission)
            if not verdict.accepted:
                return verdict
        return ACCEPTED
