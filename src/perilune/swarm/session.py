"""A swarm session from goal to result branch: plan, start, resume.

    plan = await plan_session(spec, backend=..., settings=...)          refuses before anything is spent
    outcome = await run_session(home, plan, backend=..., settings=...)  starts it
    outcome = await run_session(home, plan.id, ...)                     takes it up after any kind of end

Whoever calls holds HOME's lock, and gives a metered backend (`backends/metered.py`): the swarm itself never
goes around it. A session's journal is HOME/swarm/ID.db, its workspaces lie in HOME/swarm/ID/ while it runs,
its result is the branch perilune/ID of the user's repository, whose working tree is never touched.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from perilune.accounts.prices import PriceBook
from perilune.agent.loop import Done
from perilune.agent.sandbox import Sandbox
from perilune.backends.base import Backend
from perilune.errors import JournalCorrupt, PeriluneError, SessionNotFound, StoreError
from perilune.settings import Settings
from perilune.swarm import events
from perilune.swarm.admission import Admission
from perilune.swarm.bases import Bases
from perilune.swarm.budgets import Prices, Purse
from perilune.swarm.context import Run, plain
from perilune.swarm.copies import sandbox_of_this_machine
from perilune.swarm.halt import Halt, Halted, Interrupted, halting
from perilune.swarm.journal import Appender, Journal, JournalReader
from perilune.swarm.merge import Merger
from perilune.swarm.model_calls import ModelCalls, Patience
from perilune.swarm.orchestrator import Orchestrator
from perilune.swarm.plan import Plan, SessionSpec, new_session_id, plan_session
from perilune.swarm.recorder import Recorder
from perilune.swarm.repository import Repository
from perilune.swarm.state import SessionState, fold
from perilune.swarm.team import Team

__all__ = [
    "Outcome",
    "Plan",
    "SessionInfo",
    "SessionSpec",
    "journal_path",
    "new_session_id",
    "plan_session",
    "replay",
    "run_session",
    "sessions",
]

FOLDER = "swarm"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,60}")


@dataclass(frozen=True)
class Outcome:
    """How a run of a session ended."""

    session: str
    status: Literal["complete", "incomplete", "stopped"]
    message: str
    """The orchestrator's last sentence, or why the session stopped."""
    branch: str
    tip: str
    not_done: tuple[str, ...]
    state: SessionState = field(repr=False)
    error: PeriluneError | None = None
    """What stopped it; the session can be resumed."""

    @property
    def exit_code(self) -> int:
        """0 complete, 1 incomplete, else that of the error."""
        if self.error is not None:
            return self.error.exit_code
        return {"complete": 0, "incomplete": 1, "stopped": 1}[self.status]


@dataclass(frozen=True)
class SessionInfo:
    """One line of the list of sessions."""

    id: str
    goal: str
    repo: str
    branch: str
    status: Literal["complete", "incomplete", "stopped", "running", "damaged"]
    """`running` also for one whose process died; HOME's lock says which."""
    message: str
    started_at: int


# ---- running


async def run_session(
    home: Path,
    session: Plan | str,
    *,
    backend: Backend,
    settings: Settings,
    budget: events.Budget | None = None,
    prices: Prices | None = None,
    sandbox: Sandbox | None = None,
    patience: Patience = Patience(),  # noqa: B008  frozen
    stop: asyncio.Event | None = None,
) -> Outcome:
    """Start a planned session, or resume one by its id, and run it until it is finished or has to stop.

    `budget` replaces the session's. Setting `stop` ends the run at once and resumably, as cancelling does.
    What stops a session resumably is in the outcome; raised are only StoreError (the journal cannot be
    written or read), SessionNotFound, RepositoryError when it cannot begin, and CancelledError."""
    name = session if isinstance(session, str) else session.id
    path = journal_path(home, name)
    if isinstance(session, str) and not path.is_file():
        raise SessionNotFound(f"no session {name}", mend="perilune swarm list")
    if not isinstance(session, str):
        _forget_unstarted(path.parent)
    journal = Journal.open(path)
    try:
        state = replay(journal)
        if state.finished:
            return _outcome(state, None)
        plan = None if isinstance(session, str) else session
        return await drive(
            journal,
            state,
            plan,
            workspace_root=path.with_suffix(""),
            backend=backend,
            budget=budget,
            prices=prices or PriceBook.load(settings),
            sandbox=sandbox or sandbox_of_this_machine(unsandboxed=settings.unsandboxed),
            patience=patience,
            stop=stop,
        )
    finally:
        journal.close()


def replay(journal: Journal | JournalReader) -> SessionState:
    """The state that a journal comes to. Raises JournalCorrupt; StoreError for one of a newer version."""
    try:
        state = fold(journal.read())
    except ValueError as error:
        raise JournalCorrupt(
            f"{journal.path} does not fit together: {error}",
            mend="restore it from a backup; the result branch and your files are as they were",
        ) from error
    if state.started is not None and state.started.version > events.VERSION:
        raise StoreError(f"{journal.path} was written by a newer version", mend="go on with that version")
    return state


async def drive(
    journal: Appender,
    state: SessionState,
    plan: Plan | None,
    *,
    workspace_root: Path,
    backend: Backend,
    prices: Prices,
    sandbox: Sandbox,
    budget: events.Budget | None = None,
    patience: Patience = Patience(),  # noqa: B008  frozen
    stop: asyncio.Event | None = None,
) -> Outcome:
    """`run_session` over an open journal and the state it came to."""
    started = state.started or (None if plan is None else plan.started)
    if started is None:
        raise SessionNotFound("the session was never started", mend="start it anew")
    repository = await Repository.open(Path(started.repo), base=started.base)
    async with Recorder(journal, state) as recorder:
        await _begin(recorder, started, budget)
        halt = Halt()
        purse = Purse(recorder, started.entry, prices, halt)
        run = Run(
            recorder=recorder,
            halt=halt,
            calls=ModelCalls(backend, recorder, purse, halt, patience, started.entry.backend),
            admission=Admission(started.agents),
            bases=Bases(workspace_root, repository),
            repository=repository,
            merger=Merger(repository, started.branch, started.base),
            sandbox=sandbox,
        )
        await _end(run, await _work(run, stop))
    return _outcome(recorder.state, halt.error)


async def _begin(recorder: Recorder, started: events.SessionStarted, budget: events.Budget | None) -> None:
    await recorder.record(started if recorder.state.started is None else events.SessionResumed())
    if budget is not None and budget != recorder.state.budget:
        await recorder.record(events.BudgetChanged(budget=budget))


async def _work(run: Run, stop: asyncio.Event | None) -> Done | None:
    """Until the orchestrator has ended (how, is returned) or the session is halted; leaves no task behind."""
    team, done = Team(run), None
    async with _interrupting(run, stop):
        try:
            with halting(run.halt):
                await run.merger.create(run.state.tip)
                for one in run.state.queue:
                    team.start(one.id)
                done = await Orchestrator(run, team).run()
                await team.drain()
        except Halted:
            await team.drain()
        finally:
            await team.cancel()
    return done


@asynccontextmanager
async def _interrupting(run: Run, stop: asyncio.Event | None) -> AsyncIterator[None]:
    """Turns `stop`, and a cancellation from outside, into a halt that is written down."""
    task = asyncio.current_task()
    assert task is not None, "a session runs in a task"
    stopped = False

    async def watch(event: asyncio.Event) -> None:
        nonlocal stopped
        await event.wait()
        stopped = True
        task.cancel()

    watcher = None if stop is None else asyncio.create_task(watch(stop), name="stop watcher")
    try:
        yield
    except asyncio.CancelledError:
        run.halt.set(
            Interrupted("the session was interrupted", mend=f"perilune swarm resume {run.session.id}")
        )
        if not stopped:
            await _end(run, None)
            raise
        task.uncancel()
    finally:
        if watcher is not None:
            watcher.cancel()


async def _end(run: Run, done: Done | None) -> None:
    """Write down how it ended."""
    error, state = run.halt.error, run.state
    if error is not None:
        await run.recorder.record(events.SessionStopped(reason=error.code, message=str(error)))
        return
    assert done is not None, "without a halt the orchestrator has ended"
    # For a rename the files decide, not what was said about them.
    succeeded = bool(state.session.files) or done.status == "succeeded"
    status: Literal["complete", "incomplete"] = (
        "complete" if succeeded and not state.not_done else "incomplete"
    )
    # Before the last event, so that a kill between the two leaves no folder that nobody asks for again.
    await run.bases.remove()
    await run.recorder.record(
        events.SessionFinished(status=status, message=plain(done.message), tip=await run.merger.tip())
    )


def _outcome(state: SessionState, error: PeriluneError | None) -> Outcome:
    assert state.status != "new" and state.status != "running", "a driven session has ended or stopped"
    return Outcome(
        session=state.session.id,
        status=state.status,
        message=state.message,
        branch=state.session.branch,
        tip=state.tip,
        not_done=state.not_done,
        state=state,
        error=error,
    )


# ---- the sessions of a HOME


def journal_path(home: Path, session: str) -> Path:
    """Where a session's journal lies. Raises SessionNotFound for what can be no id."""
    if not _ID.fullmatch(session):
        raise SessionNotFound(f"{session!r} is no session", mend="perilune swarm list")
    return home / FOLDER / f"{session}.db"


def sessions(home: Path) -> Sequence[SessionInfo]:
    """All sessions of a HOME, oldest first. A damaged journal is listed with what is wrong."""
    return tuple(_info(path) for path in sorted((home / FOLDER).glob("*.db")))


def _forget_unstarted(folder: Path) -> None:
    """Remove journals whose process died before it wrote a line: there is nothing to resume in them."""
    for path in folder.glob("*.db"):
        try:
            reader = JournalReader(path)
            try:
                started = next(iter(reader.read()), None) is not None
            finally:
                reader.close()
        except StoreError:  # damaged: `sessions` lists it, a person decides
            continue
        if not started:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)


def _info(path: Path) -> SessionInfo:
    try:
        reader = JournalReader(path)
    except StoreError as error:
        return SessionInfo(path.stem, "", "", "", "damaged", str(error), 0)
    try:
        first = next(iter(reader.read()), None)
        if first is None or not isinstance(first.event, events.SessionStarted):
            return SessionInfo(path.stem, "", "", "", "stopped", "was never started", 0)
        began = first.event
        info = SessionInfo(began.id, began.goal, began.repo, began.branch, "running", "", first.at)
        match reader.latest("session_stopped", "session_finished", "session_resumed"):
            case events.SessionStopped(message=message):
                return replace(info, status="stopped", message=message)
            case events.SessionFinished(status=status, message=message):
                return replace(info, status=status, message=message)
            case _:
                return info
    except StoreError as error:
        return SessionInfo(path.stem, "", "", "", "damaged", str(error), 0)
    finally:
        reader.close()
