"""Report and live view: all that a session did, from its journal alone."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from perilune.accounts.prices import PriceBook
from perilune.backends.rename_script import RULES
from perilune.backends.scripted import ScriptedBackend, scripted_entry
from perilune.chat.messages import Event as StreamEvent
from perilune.chat.messages import Request
from perilune.errors import BackendAuth, InputError, SessionNotFound
from perilune.settings import Settings
from perilune.swarm import events
from perilune.swarm.estimate import estimate, usd
from perilune.swarm.events import Budget, Entry
from perilune.swarm.journal import Journal, JournalReader
from perilune.swarm.report import (
    build_report,
    count,
    duration,
    read_report,
    to_json,
    to_markdown,
    write_report,
)
from perilune.swarm.repository import run_git
from perilune.swarm.session import Outcome, Plan, SessionSpec, journal_path, plan_session, run_session
from perilune.swarm.state import SessionState, fold
from perilune.swarm.view import Watch, describe, follow, frame

GOAL = "Rename Old to New in pkg."
FILES = {"a": 1, "b": 3, "c": 0, "d": 5, "e": 2}
"""Hit lines by module."""


class Stubborn(ScriptedBackend):
    """Plays its part, but says that it is done with `b.py` before it has begun; at `refuse` it is refused."""

    def __init__(self, refuse: str = "") -> None:
        super().__init__([self._lazy, *RULES], entry=scripted_entry())
        self.refuse = refuse

    def _lazy(self, request: Request) -> str | None:
        named = any(message.content == "pkg/b.py" for message in request.messages)
        return "Done: 3 edits." if named else None

    async def stream(self, request: Request) -> AsyncIterator[StreamEvent]:
        if self.refuse and any(message.content == self.refuse for message in request.messages):
            raise BackendAuth("the endpoint refused our key", mend="perilune connect URL")
        async for event in super().stream(request):
            yield event


async def project(root: Path) -> Path:
    (root / "pkg").mkdir(parents=True)
    for name, hits in FILES.items():
        (root / "pkg" / f"{name}.py").write_text("".join(f"x{line} = Old\n" for line in range(hits)))
    for args in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "Base"]):
        assert (await run_git(root, *args)).code == 0
    return root


async def plan_in(home: Path, backend: ScriptedBackend, **spec: int) -> Plan:
    repo = await project(home / "project")
    return await plan_session(
        SessionSpec(GOAL, repo, **spec),  # type: ignore[arg-type]
        backend=backend,
        settings=Settings(home=home),
    )


async def run_in(home: Path, backend: ScriptedBackend, **spec: int) -> tuple[Outcome, Path]:
    plan = await plan_in(home, backend, **spec)
    done = await run_session(home, plan, backend=backend, settings=Settings(home=home))
    return done, journal_path(home, plan.id)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """A session in which all went well, and its journal."""
    return asyncio.run(run_in(tmp_path_factory.mktemp("clean"), ScriptedBackend()))


@pytest.fixture(scope="module")
def stubborn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """A session in which one file was not done."""
    return asyncio.run(run_in(tmp_path_factory.mktemp("stubborn"), Stubborn(), retries=1))


# ---- report


def test_a_clean_session_is_told_in_full(clean: tuple[Outcome, Path]) -> None:
    done, journal = clean
    report = read_report(journal)
    assert (report.status, report.branch, report.tip) == ("complete", done.branch, done.tip)
    assert (report.totals.done, report.totals.assignments, report.not_done) == (5, 5, ())
    assert {row.task: row.edits for row in report.assignments} == {
        f"pkg/{name}.py": hits for name, hits in FILES.items()
    }
    assert report.totals.merges == 4
    outcomes = {row.task: [one.outcome for one in row.attempts] for row in report.assignments}
    assert outcomes["pkg/a.py"] == ["merged"] and outcomes["pkg/c.py"] == ["accepted"]
    assert report.totals.active_ms <= report.totals.wall_ms
    assert not report.charged


def test_the_parts_sum_up_to_the_whole(clean: tuple[Outcome, Path]) -> None:
    done, journal = clean
    report, lead = read_report(journal), done.state.orchestrator_spent
    for field in ("steps", "prompt_tokens", "cached_tokens", "completion_tokens", "nano_usd"):
        parts = sum(getattr(row, field) for row in report.assignments) + getattr(lead, field)
        assert parts == getattr(report.totals, field), field
    assert 0 < report.totals.critical_steps < report.totals.steps
    assert 0 < report.totals.cached_percent < 100


def test_what_is_not_done_is_listed_with_its_reason(stubborn: tuple[Outcome, Path]) -> None:
    done, journal = stubborn
    assert done.status == "incomplete"
    report = read_report(journal)
    assert [one.what for one in report.not_done] == ["pkg/b.py"]
    assert "given up after" in report.not_done[0].why and "Old is left 3 times" in report.not_done[0].why
    row = next(row for row in report.assignments if row.task == "pkg/b.py")
    assert row.status == "failed" and {one.outcome for one in row.attempts} == {"rejected"}
    text = to_markdown(report)
    assert "## Not done (1)" in text and "**Incomplete**: 4 of 5 assignments done." in text
    assert "- `pkg/b.py`, attempt 1: rejected, Old is left 3 times in pkg/b.py" in text


async def test_a_stopped_session_and_its_resume(tmp_path: Path) -> None:
    backend = Stubborn(refuse="pkg/d.py")
    backend.__dict__["_rules"] = tuple(RULES)
    done, journal = await run_in(tmp_path, backend)
    assert done.status == "stopped"
    stopped = read_report(journal)
    assert stopped.status == "stopped" and "refused our key" in stopped.message
    assert "pkg/d.py" in [one.what for one in stopped.not_done]
    backend.refuse = ""
    await run_session(tmp_path, done.session, backend=backend, settings=Settings(home=tmp_path))
    report = read_report(journal)
    assert (report.status, report.totals.resumes, report.not_done) == ("complete", 1, ())
    assert "1 resume" in to_markdown(report)


def test_any_prefix_of_the_journal_has_a_report(stubborn: tuple[Outcome, Path]) -> None:
    _, journal = stubborn
    reader = JournalReader(journal)
    entries = list(reader.read())
    reader.close()
    for length in range(1, len(entries) + 1):
        report = build_report(entries[:length])
        assert report.events == length
        assert to_markdown(report).startswith("# Rename Old to New in pkg.")
        assert report.totals.done + len(report.not_done) >= len(FILES)


def test_both_files_are_written_from_a_journal_that_is_in_use(
    clean: tuple[Outcome, Path], tmp_path: Path
) -> None:
    _, path = clean
    journal = Journal.open(path)
    report = write_report(path, tmp_path / "report.md", tmp_path / "report.json")
    journal.close()
    assert (tmp_path / "report.md").read_text() == to_markdown(report)
    decoded = json.loads((tmp_path / "report.json").read_text())
    assert decoded["version"] == 1 and decoded["totals"]["steps"] == report.totals.steps
    assert msgspec.json.decode(to_json(report), type=type(report)) == report


def test_a_journal_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(SessionNotFound):
        read_report(tmp_path / "none.db")
    Journal.open(tmp_path / "empty.db").close()
    with pytest.raises(InputError, match="is empty"):
        read_report(tmp_path / "empty.db")


def started(**changes: object) -> events.SessionStarted:
    from perilune.agent.profiles import load_profile

    fields: dict[str, object] = {
        "id": "S1",
        "goal": "Do | it `now`\nplease",
        "repo": "/r",
        "base": "b" * 40,
        "branch": "perilune/S1",
        "entry": scripted_entry(goals="any"),
        "orchestrator": load_profile("orchestrate-rename"),
        "subagent": load_profile("rename"),
        "profile_hashes": {},
        "budget": Budget(steps=9, tokens=1000, nano_usd=5_000_000),
    }
    return events.SessionStarted(**{**fields, **changes})  # type: ignore[arg-type]


def journal_of(*said: events.Event, step_ms: int = 1000) -> list[Entry]:
    return [Entry(seq, seq * step_ms, event) for seq, event in enumerate((started(), *said), start=1)]


QUEUED = (
    events.AgentCreated(name="w", system_prompt="Work.\x1b[2J"),
    events.AssignmentQueued(id="A1", key="k", agent="w", prompt="a | b\n`c`", stage=1, base="b" * 40),
    events.AssignmentClaimed(id="A1"),
    events.AttemptStarted(id="A1", attempt=0, base="b" * 40),
)


def test_words_of_a_model_cannot_break_the_page() -> None:
    text = to_markdown(build_report(journal_of(*QUEUED)))
    assert text.startswith("# Do | it 'now' please\n")
    assert "| `a \\| b 'c'` | working |" in text
    assert "`a | b 'c'`: still working" in text
    assert "- steps: 0 of 9\n- tokens: 0 of 1,000\n- money: USD 0.0000 of 0.0050" in text


def test_time_in_which_nobody_worked_is_not_work() -> None:
    entries = journal_of(*QUEUED, events.SessionResumed(), events.AssignmentClaimed(id="A1"))
    late = [msgspec.structs.replace(one, at=one.at + (3_600_000 if one.seq >= 6 else 0)) for one in entries]
    totals = build_report(late).totals
    assert (totals.active_ms, totals.wall_ms) == (5_000, 3_606_000)


def test_a_conflict_is_an_attempt_that_was_not_taken() -> None:
    entries = journal_of(
        *QUEUED,
        events.AttemptEnded(id="A1", attempt=0, status="succeeded", message="Done."),
        events.VerdictGiven(id="A1", attempt=0, accepted=True),
        events.MergeIntended(id="A1", attempt=0, commit="c" * 40, message="m", when=1),
        events.MergeRefused(id="A1", attempt=0, reason="conflict in x", paths=("x",)),
        events.RetryScheduled(id="A1", attempt=0, reason="conflict in x"),
        events.AttemptStarted(id="A1", attempt=1, base="b" * 40),
        events.AttemptEnded(id="A1", attempt=1, status="failed", message="Failed: loop."),
    )
    row = build_report(entries).assignments[0]
    assert [(one.number, one.outcome, one.reason) for one in row.attempts] == [
        (1, "conflict", "conflict in x"),
        (2, "failed", "Failed: loop."),
    ]


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0 ms"), (999, "999 ms"), (12_340, "12.3 s"), (245_000, "4 min 05 s"), (7_620_000, "2 h 07 min")],
)
def test_durations(ms: int, text: str) -> None:
    assert duration(ms) == text


def test_counts_and_money() -> None:
    assert (count(1, "retry"), count(2, "retry"), count(0, "merge")) == ("1 retry", "2 retries", "0 merges")
    assert [usd(nano) for nano in (0, 1_234, 12_345_678, 1_234_567_890_123)] == [
        "0.0000",
        "0.000001",
        "0.0123",
        "1,234.57",
    ]


# ---- estimate


async def test_the_estimate_of_a_rename_is_close_and_counts_steps_exactly(tmp_path: Path) -> None:
    plan = await plan_in(tmp_path, ScriptedBackend())
    settings = Settings(home=tmp_path)
    told = estimate(plan.started, plan.scope, PriceBook.load(settings))
    done = await run_session(tmp_path, plan, backend=ScriptedBackend(), settings=settings)
    spent = done.state.spent
    # The file with five hits starts once afresh after four edits, unless its end is in sight.
    assert abs(told.steps - spent.steps) <= 1
    assert 0.7 < told.prompt_tokens / spent.prompt_tokens < 1.4
    assert 0.7 < told.nano_usd / spent.nano_usd < 1.5
    assert told.agents == 5 and told.limits == ()
    assert told.text().startswith("About 5 sub-agents (5 at once)")
    assert "An estimate from 5 files with 11 lines to change" in told.text()


async def test_a_budget_below_the_estimate_is_said(tmp_path: Path) -> None:
    plan = await plan_in(tmp_path, ScriptedBackend(), steps=3, tokens=10, nano_usd=5, agents=2)
    told = estimate(plan.started, plan.scope, PriceBook.load(Settings(home=tmp_path)))
    assert told.live == 2
    assert [word in "".join(told.limits) for word in ("3 steps", "10 tokens", "USD 0.000000")] == [True] * 3


def test_other_goals_are_estimated_by_agents(tmp_path: Path) -> None:
    prices = PriceBook.load(Settings(home=tmp_path))
    few, many = (estimate(started(agents=number), None, prices) for number in (10, 300))
    assert few.steps < 200 and 3_900 < many.steps < 4_100
    assert few.nano_usd < many.nano_usd < 40_000_000_000
    assert "differs widely" in few.text()


# ---- live view


def told_by(entries: Sequence[Entry]) -> list[str]:
    state, lines = SessionState(), []
    for entry in entries:
        state = fold([entry], state)
        line = describe(entry, state)
        lines += [line] if line else []
    return lines


async def test_a_pipe_gets_one_line_for_each_thing_that_matters(clean: tuple[Outcome, Path]) -> None:
    _, journal = clean
    out = io.StringIO()
    state = await follow(journal, out)
    assert state.status == "complete"
    lines = out.getvalue().splitlines()
    assert lines[-1] == "session complete: Finished: 5 of 5 files done."
    assert sum(line.startswith("done pkg/") for line in lines) == 5
    assert "\x1b" not in out.getvalue()


async def test_a_view_waits_for_the_journal_and_reads_to_its_end(tmp_path: Path) -> None:
    backend = ScriptedBackend(latency=0.02)
    plan = await plan_in(tmp_path, backend)
    out = io.StringIO()
    path = journal_path(tmp_path, plan.id)
    running = asyncio.create_task(
        run_session(tmp_path, plan, backend=backend, settings=Settings(home=tmp_path))
    )
    state = await follow(path, out, ended=running.done)
    assert (await running).state.seq == state.seq
    assert out.getvalue().startswith(f"session {plan.id} started: {GOAL}\n")
    assert out.getvalue().count("done pkg/") == 5


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_a_terminal_is_drawn_in_place(clean: tuple[Outcome, Path]) -> None:
    _, journal = clean
    out = Terminal()
    await follow(journal, out, width=80)
    text = out.getvalue()
    assert text.startswith("\x1b[?25l") and text.endswith("\x1b[?25h")
    assert "complete  [##" in text and "5/5" in text and "critical" in text
    assert "at kimi-k2.6 prices (not charged)" in text


@pytest.mark.parametrize("width", [1, 20, 40, 59, 60, 80, 200])
async def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    state = fold(journal_of(*QUEUED))
    lines = frame(state, ["x" * 300], width, 60_000)
    assert all(len(line) <= width for line in lines)
    assert frame(SessionState(), [], 80, 0) == ["waiting for the session to begin"]


def test_words_of_a_model_cannot_move_the_cursor() -> None:
    entries = journal_of(*QUEUED)
    text = "\n".join([*told_by(entries), *frame(fold(entries), told_by(entries), 100, 5_000)])
    assert "\x1b" not in text and "Work. [2J" in text


def test_every_trouble_has_its_line() -> None:
    lines = told_by(
        journal_of(
            *QUEUED,
            events.ModelStarted(agent="A1", tokens=1, nano_usd=1),
            events.ModelFailed(agent="A1", code="x", message="busy", retry_ms=1500),
            events.AttemptEnded(id="A1", attempt=0, status="succeeded", message="Done."),
            events.VerdictGiven(id="A1", attempt=0, accepted=False, reason="wrong"),
            events.RetryScheduled(id="A1", attempt=0, reason="wrong"),
            events.DeadLettered(id="A1", attempts=1, reason="wrong", answer="no"),
            events.SessionStopped(reason="interrupted", message="stopped"),
            events.SessionResumed(),
            events.BudgetChanged(budget=Budget(steps=12)),
        )
    )
    assert lines[2:] == [
        "model call of a | b `c` failed: busy, again in 1.5 s",
        "rejected a | b `c`: wrong",
        "again a | b `c`, after attempt 1",
        "given up a | b `c`: wrong",
        "session stopped: stopped",
        "session resumed",
        "budget is now 12 steps",
    ]


async def test_a_session_taken_up_again_does_not_print_its_past(
    clean: tuple[Outcome, Path], tmp_path: Path
) -> None:
    _, journal = clean
    out = io.StringIO()
    await follow(journal, out, ended=lambda: True)
    assert len(out.getvalue().splitlines()) <= 8
    watch = Watch(tmp_path / "later.db")
    assert watch.poll() == []
    watch.close()
