"""Before a session: goal and repository are checked, nothing is spent and nothing is written."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from perilune.agent.profiles import load_profile, profile_hash
from perilune.agent.sandbox import probe_machine
from perilune.backends.base import Backend, ModelEntry
from perilune.errors import GoalRefused, InputError, NotFound, SandboxError
from perilune.settings import Settings
from perilune.swarm import events
from perilune.swarm.context import plain
from perilune.swarm.repository import Repository
from perilune.swarm.verify import RenameScope, check_rename_goal, parse_rename_goal

BRANCH_PREFIX = "perilune/"


@dataclass(frozen=True)
class SessionSpec:
    """What somebody asks for. None: as the settings say."""

    goal: str
    repo: Path
    agents: int | None = None
    """Most sub-agents that live at once."""
    steps: int | None = None
    tokens: int | None = None
    nano_usd: int | None = None
    model: str = ""
    """Id or alias; empty: the backend's first model."""
    check: tuple[str, ...] = ()
    """Command that accepts or rejects each assignment's changes, run in the sandbox."""
    retries: int | None = None


@dataclass(frozen=True)
class Plan:
    """A session that may start: goal and repository were checked, nothing was spent or written."""

    id: str
    started: events.SessionStarted
    scope: RenameScope | None
    """The files of a rename goal; None for other goals."""
    notes: tuple[str, ...] = ()
    """What the user should know about the repository."""


async def plan_session(spec: SessionSpec, *, backend: Backend, settings: Settings, salt: str = "") -> Plan:
    """Check goal and repository. Raises GoalRefused, RepositoryError, NotFound (no such model), InputError,
    SandboxError (the work needs commands and they cannot be isolated), and what the backend raises."""
    goal = plain(spec.goal).strip()
    if not goal:
        raise GoalRefused("the goal is empty", field="goal", mend="say what is to be done")
    entry = await _entry(backend, spec.model)
    parsed = parse_rename_goal(goal) if entry.goals == "rename" else None
    repository = await Repository.open(spec.repo)
    scope = None if parsed is None else await check_rename_goal(parsed, repository)
    goal = goal if parsed is None else parsed.sentence
    name = new_session_id()
    roles = {"orchestrator": entry.orchestrator_profile, "subagent": entry.subagent_profile}
    profiles = {
        role: load_profile(name).fitted(entry.context_length, entry.max_output_tokens)
        for role, name in roles.items()
    }
    if spec.check or profiles["subagent"].tool("bash") is not None:
        _refuse_without_sandbox(settings)
    started = events.SessionStarted(
        id=name,
        goal=goal,
        repo=str(repository.root),
        base=repository.base_commit,
        branch=f"{BRANCH_PREFIX}{name}",
        entry=entry,
        orchestrator=profiles["orchestrator"],
        subagent=profiles["subagent"],
        profile_hashes={name: profile_hash(name) for name in roles.values()},
        budget=_budget(spec, settings),
        agents=_at_least_one("agents", settings.max_agents if spec.agents is None else spec.agents),
        retries=settings.retries if spec.retries is None else max(spec.retries, 0),
        check=spec.check,
        files=() if scope is None else scope.files,
        affected=0 if scope is None else len(scope.affected),
        cache_salt=salt,
    )
    return Plan(name, started, scope, await repository.notes())


def _refuse_without_sandbox(settings: Settings) -> None:
    found = probe_machine()
    if found.kind == "none" and not settings.unsandboxed:
        raise SandboxError(
            f"commands cannot be isolated: {found.reason}",
            mend=f"{found.mend}, or set `unsandboxed` to run them without isolation",
        )


def new_session_id() -> str:
    """Sorts by time; fit for a branch, a file and a shell."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


async def _entry(backend: Backend, model: str) -> ModelEntry:
    models = await backend.models()
    if not models:
        raise NotFound("the backend serves no model", field="model", mend="perilune doctor says why")
    if not model:
        return models[0]
    found = next((entry for entry in models if model in (entry.id, *entry.aliases)), None)
    if found is None:
        known = ", ".join(entry.id for entry in models)
        raise NotFound(f"no model {model}", field="model", mend=f"one of: {known}")
    return found


def _budget(spec: SessionSpec, settings: Settings) -> events.Budget:
    steps = _at_least_one("steps", settings.max_steps if spec.steps is None else spec.steps)
    for name, limit in (("tokens", spec.tokens), ("nano_usd", spec.nano_usd)):
        if limit is not None:
            _at_least_one(name, limit)
    return events.Budget(steps=steps, tokens=spec.tokens, nano_usd=spec.nano_usd)


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise InputError(f"must be at least 1, not {value}", field=name, mend="give a larger number")
    return value
