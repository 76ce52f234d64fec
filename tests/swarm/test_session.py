"""Sessions from goal to branch: what is refused, what is retried, what is listed as not done."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from session_parts import FILES, RENAMED, Bench, code_entry, files_at, git, task_commits

from perilune.backends.faulty import FaultPlan, FaultyBackend
from perilune.backends.rename_script import RULES
from perilune.backends.scripted import Call, Reply, Rule, ScriptedBackend, text_of
from perilune.chat.messages import Completion, Event, Finished, Message, Request, ToolCall, Usage
from perilune.errors import (
    BackendAuth,
    BackendRateLimited,
    BudgetExhausted,
    GoalRefused,
    InputError,
    JournalCorrupt,
    NotFound,
    RepositoryError,
    SessionNotFound,
    StorageFull,
)
from perilune.swarm.events import Budget
from perilune.swarm.journal import Journal
from perilune.swarm.session import sessions


def is_subagent(request: Request, path: str) -> bool:
    return any(m.role == "user" and text_of(m) == path for m in request.messages)


class Watched(ScriptedBackend):
    """Counts the sub-agents that are in a call at once."""

    def __init__(self, *args: object, **more: object) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self.calls = 0
        self.live: Counter[str] = Counter()
        self.peak = 0

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        self.calls += 1
        name = next(text_of(m) for m in request.messages if m.role == "user")
        self.live[name] += 1
        self.peak = max(self.peak, sum(1 for path in self.live if path in FILES and self.live[path]))
        try:
            await asyncio.sleep(0.005)
            async for event in super().stream(request):
                yield event
        finally:
            self.live[name] -= 1


# ---- before anything is spent


async def test_a_goal_the_model_cannot_do_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Watched())
    with pytest.raises(GoalRefused, match="perilune connect"):
        await bench.plan("Make it faster.")
    with pytest.raises(GoalRefused, match="nowhere"):
        await bench.plan("Rename no_such to other in src.")
    with pytest.raises(GoalRefused, match="empty"):
        await bench.plan("  ")
    with pytest.raises(NotFound, match="no model"):
        await bench.plan(model="gpt")
    with pytest.raises(InputError, match="steps"):
        await bench.plan(steps=0)
    (bench.repo / "src/app.py").write_text("changed")
    with pytest.raises(RepositoryError, match="uncommitted"):
        await bench.plan()
    assert not bench.home.exists()
    assert bench.backend.calls == 0  # type: ignore[attr-defined]


async def test_the_users_tree_and_branch_stay_as_they_are(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    outcome = await bench.run(await bench.plan())
    assert git(bench.repo, "status", "--porcelain") == ""
    assert git(bench.repo, "rev-parse", "HEAD") == bench.base
    assert git(bench.repo, "branch", "--show-current") == "main"
    assert {path: (bench.repo / path).read_text() for path in FILES} == FILES
    assert git(bench.repo, "rev-parse", outcome.branch) == outcome.tip


async def test_a_finished_session_is_told_again_without_a_call(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    plan = await bench.plan()
    first = await bench.run(plan)
    quiet = Watched()
    again = await bench.run(plan.id, quiet)
    assert (again.state, quiet.calls) == (first.state, 0)
    with pytest.raises(SessionNotFound):
        await bench.run("20260101-000000-0000")
    with pytest.raises(SessionNotFound):
        await bench.run("../escape")


# ---- retries and dead letters


def lazy(path: str, *, always: bool) -> Rule:
    """A sub-agent that claims to be done with this file without a look, at first or always."""

    def rule(request: Request) -> Reply | None:
        if is_subagent(request, path) and (always or request.seed is None):
            return "Done: 0 edits."
        return None

    return rule


async def test_a_wrong_result_is_rejected_and_tried_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ScriptedBackend([lazy("src/conf.py", always=False), *RULES]))
    outcome = await bench.run(await bench.plan())
    assert outcome.status == "complete"
    assert files_at(bench.repo, outcome.tip) == RENAMED
    assert outcome.state.retries == 1
    one = next(a for a in outcome.state.assignments.values() if a.key == "src/conf.py")
    assert (one.attempt, one.answer, one.paths) == (1, "Done: 1 edit.", ("src/conf.py",))


async def test_what_stays_wrong_is_listed_as_not_done(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ScriptedBackend([lazy("src/conf.py", always=True), *RULES]))
    outcome = await bench.run(await bench.plan(retries=1))
    assert (outcome.status, outcome.not_done, outcome.exit_code) == ("incomplete", ("src/conf.py",), 1)
    assert outcome.message == "Finished: 2 of 3 files done."
    one = next(a for a in outcome.state.assignments.values() if a.key == "src/conf.py")
    assert (one.status, one.attempt, one.paths) == ("failed", 1, ())
    assert one.reason == "load_config is left 1 times in src/conf.py"
    assert one.answer == "Failed: load_config is left 1 times in src/conf.py."
    merged = files_at(bench.repo, outcome.tip)
    assert merged == {**RENAMED, "src/conf.py": FILES["src/conf.py"]}


async def test_a_sub_agent_that_cannot_end_does_not_hold_up_the_others(tmp_path: Path) -> None:
    def stubborn(request: Request) -> Reply | None:
        if is_subagent(request, "src/conf.py"):
            return Call("search", {"path": "nowhere.py", "name": "load_config"})
        return None

    bench = Bench(tmp_path, ScriptedBackend([stubborn, *RULES]))
    outcome = await bench.run(await bench.plan(retries=0))
    assert outcome.not_done == ("src/conf.py",)
    one = next(a for a in outcome.state.assignments.values() if a.key == "src/conf.py")
    assert one.reason == "Failed: loop."


async def test_a_path_given_twice_is_done_once_and_answered_twice(tmp_path: Path) -> None:
    def twice(request: Request) -> Reply | None:
        reply = RULES[0](request)
        return [*reply, *reply] if isinstance(reply, list) else reply

    bench = Bench(tmp_path, ScriptedBackend([twice, *RULES]))
    outcome = await bench.run(await bench.plan())
    assert outcome.status == "complete"
    assert len(outcome.state.assignments) == 3
    assert task_commits(bench.repo, bench.base, outcome.tip) == ["a0001", "a0002"]


async def test_no_more_sub_agents_live_than_are_admitted(tmp_path: Path) -> None:
    for agents, least, most in ((1, 1, 1), (300, 2, 3)):
        backend = Watched()
        bench = Bench(tmp_path / str(agents), backend)
        outcome = await bench.run(await bench.plan(agents=agents))
        assert outcome.status == "complete"
        assert least <= backend.peak <= most


# ---- trouble with the model


async def test_a_faulty_endpoint_delays_the_session_and_spoils_nothing(tmp_path: Path) -> None:
    failed_calls = 0
    for seed in range(3):
        plan = FaultPlan(seed=seed, error=0.2, cut=0.2)
        bench = Bench(tmp_path / str(seed), FaultyBackend(ScriptedBackend(), plan))
        outcome = await bench.run(await bench.plan())
        assert (outcome.status, files_at(bench.repo, outcome.tip)) == ("complete", RENAMED)
        failed_calls += outcome.state.failed_calls
        assert outcome.state.spent.lost_tokens == 0  # the scripted model bills nothing it did not finish
    assert failed_calls > 0  # a session's requests hold its id: one of them may be spared


async def test_wrong_edits_and_broken_calls_never_reach_the_branch(tmp_path: Path) -> None:
    plan = FaultPlan(seed=5, broken_json=0.2, wrong_edit=0.3, repeats=0)
    bench = Bench(tmp_path, FaultyBackend(ScriptedBackend(), plan))
    outcome = await bench.run(await bench.plan())
    merged = files_at(bench.repo, outcome.tip)
    done = {a.key for a in outcome.state.assignments.values() if a.phase == "done"}
    assert merged == {path: RENAMED[path] if path in done else FILES[path] for path in FILES}
    assert set(outcome.not_done) == {path for path in FILES if path.startswith("src/")} - done


class Refusing(ScriptedBackend):
    def __init__(self, error: Exception, after: int) -> None:
        super().__init__()
        self._error, self._left = error, after

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        self._left -= 1
        if self._left < 0:
            raise self._error
        async for event in super().stream(request):
            yield event


@pytest.mark.parametrize("error", [BackendAuth("the key was refused"), BackendRateLimited("busy")])
async def test_an_endpoint_that_will_not_answer_stops_the_session_for_later(
    tmp_path: Path, error: Exception
) -> None:
    bench = Bench(tmp_path)
    plan = await bench.plan()
    stopped = await bench.run(plan, Refusing(error, after=6))
    assert (stopped.status, stopped.error) == ("stopped", error)
    assert sessions(bench.home)[0].status == "stopped"
    outcome = await bench.run(plan.id)
    assert (outcome.status, files_at(bench.repo, outcome.tip)) == ("complete", RENAMED)
    assert outcome.state.resumes == 1
    assert [s.status for s in sessions(bench.home)] == ["complete"]


# ---- budgets


@pytest.mark.parametrize("budget", [{"steps": 9}, {"tokens": 4_000}, {"nano_usd": 4_000_000}])
async def test_a_session_stops_within_its_budget_and_goes_on_with_a_larger_one(
    tmp_path: Path, budget: dict[str, int]
) -> None:
    bench = Bench(tmp_path)
    plan = await bench.plan(**budget)
    stopped = await bench.run(plan)
    assert isinstance(stopped.error, BudgetExhausted)
    (name, limit), spent = next(iter(budget.items())), stopped.state.spent
    assert 0 < getattr(spent, name) <= limit
    assert not stopped.state.calls and stopped.state.reserved.steps == 0
    again = await bench.run(plan.id)
    assert isinstance(again.error, BudgetExhausted)
    assert again.state.spent.steps == spent.steps
    outcome = await bench.run(plan.id, budget=Budget(steps=4000))
    assert (outcome.status, files_at(bench.repo, outcome.tip)) == ("complete", RENAMED)


# ---- stopping and damage


class Silent(ScriptedBackend):
    """Never answers."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        self.asked.set()
        await asyncio.Event().wait()
        yield Finished("stop", Usage())


async def test_a_session_that_is_asked_to_stop_does_so_and_can_go_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    plan, stop, silent = await bench.plan(), asyncio.Event(), Silent()
    running = asyncio.create_task(bench.run(plan, silent, stop=stop))
    await silent.asked.wait()
    stop.set()
    stopped = await running
    assert (stopped.status, stopped.state.stop_reason) == ("stopped", "interrupted")
    assert stopped.state.lost_calls == 1

    silent = Silent()
    cancelled = asyncio.create_task(bench.run(plan.id, silent))
    await silent.asked.wait()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert sessions(bench.home)[0].status == "stopped"
    assert (await bench.run(plan.id)).status == "complete"


async def test_a_journal_in_which_nothing_was_written_is_taken_away_by_the_next_session(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    killed, plan = await bench.plan(), await bench.plan()
    Journal.open(bench.journal(killed)).close()
    torn = bench.home / "swarm" / "torn.db"
    torn.touch()
    damaged = bench.home / "swarm" / "damaged.db"
    damaged.write_bytes(b"no database" * 1000)
    await bench.run(plan)
    left = {path.name for path in (bench.home / "swarm").glob("*.db*")}
    assert left == {bench.journal(plan).name, damaged.name}


async def test_a_damaged_journal_is_named_and_nothing_runs(tmp_path: Path) -> None:
    import sqlite3

    bench = Bench(tmp_path)
    plan = await bench.plan()
    await bench.run(plan)
    with sqlite3.connect(bench.journal(plan)) as connection:
        body = bytearray(connection.execute("SELECT body FROM event WHERE seq = 7").fetchone()[0])
        body[10] ^= 1
        connection.execute("UPDATE event SET body = ? WHERE seq = 7", (bytes(body),))
    connection.close()
    with pytest.raises(JournalCorrupt, match="event 7: its checksum"):
        await bench.run(plan.id)
    with sqlite3.connect(bench.journal(plan)) as connection:
        connection.execute("DELETE FROM event WHERE seq = 7")
    connection.close()
    with pytest.raises(JournalCorrupt, match="event 7: it is missing"):
        await bench.run(plan.id)
    bench.journal(plan).write_bytes(b"not a database" * 1000)
    with pytest.raises(JournalCorrupt):
        await bench.run(plan.id)
    assert sessions(bench.home)[0].status == "damaged"


async def test_a_full_disk_ends_the_run_with_its_name_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    plan = await bench.plan()
    kept, append = 40, Journal.append

    async def full(self: Journal, entries: object) -> None:
        nonlocal kept
        kept -= len(entries)  # type: ignore[arg-type]
        if kept < 0:
            raise StorageFull("no space left", mend="free some disk space and try again")
        await append(self, entries)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "append", full)
    with pytest.raises(StorageFull):
        await bench.run(plan)
    monkeypatch.undo()
    outcome = await bench.run(plan.id)
    assert (outcome.status, files_at(bench.repo, outcome.tip)) == ("complete", RENAMED)


# ---- a model that takes any goal


def lead(request: Request) -> Reply | None:
    """Two tasks at once, then a look, then the last word."""
    if "assign_task" not in {tool.name for tool in request.tools}:
        return None
    said = [m for m in request.messages if m.role == "assistant"]
    match len(said):
        case 0:
            return [
                Call("create_subagent", {"name": "coder", "system_prompt": "Write small files."}),
                Call("list_files", {"dir": "src", "page": 1}),
                Call("grep", {"pattern": "load_config"}),
            ]
        case 1:
            return [Call("assign_task", {"agent": "coder", "prompt": f"Write {name}.txt"}) for name in "ab"]
        case 2:
            return [Call("status"), Call("view", {"path": "a.txt"})]
        case _:
            return "Both files are written."


def coder(request: Request) -> Reply | None:
    said = sum(m.role == "assistant" for m in request.messages)
    name = text_of(next(m for m in request.messages if m.role == "user")).split()[1]
    match said:
        case 0:
            return Call("create", {"path": name, "content": "draft\n"})
        case 1:
            return Call(
                "bash", {"command": f"cat {name} && echo done >> {name} && touch README.md && ls src"}
            )
        case _:
            return Call("submit", {"summary": f"Wrote {name}."})


async def test_any_goal_runs_with_commands_in_the_sandbox(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ScriptedBackend([lead, coder], entry=code_entry()))
    plan = await bench.plan("Write a.txt and b.txt.", check=("cat", "a.txt", "b.txt"))
    outcome = await bench.run(plan)
    # The check wants both files, and each task wrote one: neither can pass on its own.
    assert (outcome.status, set(outcome.not_done)) == ("incomplete", {"Write a.txt", "Write b.txt"})
    plan = await bench.plan("Write a.txt and b.txt.", check=("sh", "-c", "grep -q done *.txt"))
    outcome = await bench.run(plan)
    assert (outcome.status, outcome.message) == ("complete", "Both files are written.")
    assert files_at(bench.repo, outcome.tip) == {**FILES, "a.txt": "draft\ndone\n", "b.txt": "draft\ndone\n"}
    answers = [m for turn in outcome.state.orchestrator.turns for m in turn.results.values()]  # type: ignore[union-attr]
    texts = [record.content for record in answers]
    assert "src/app.py\nsrc/conf.py\nsrc/util.py\nlast page" in texts
    assert "Wrote a.txt.\n\n[merged: a.txt]" in texts
    assert any(text.startswith("2 tasks: 2 done, 0 failed, 0 open") for text in texts)
    assert any("draft" in text for text in texts)  # the orchestrator sees what was merged
    assert outcome.state.critical_steps == 4 + 3


async def test_two_tasks_that_write_the_same_file_end_one_after_the_other(tmp_path: Path) -> None:
    def rivals(request: Request) -> Reply | None:
        reply = lead(request)
        if isinstance(reply, list) and reply[0].name == "assign_task":
            return [Call("assign_task", {"agent": "coder", "prompt": f"Extend app.py {n}"}) for n in "12"]
        return reply

    def writer(request: Request) -> Reply | None:
        said = [m for m in request.messages if m.role == "assistant"]
        mine = text_of(next(m for m in request.messages if m.role == "user"))[-1]
        if not said:
            return Call("bash", {"command": f"cat src/app.py; echo '# {mine}' >> src/app.py"})
        return Call("submit", {"summary": "Extended."})

    bench = Bench(tmp_path, ScriptedBackend([rivals, writer], entry=code_entry()))
    outcome = await bench.run(await bench.plan("Extend app.py twice."))
    assert outcome.status == "complete"
    text = files_at(bench.repo, outcome.tip)["src/app.py"]
    assert sorted(text.splitlines()[-2:]) == ["# 1", "# 2"]
    assert outcome.state.retries == 1


async def test_a_rejected_coder_is_told_why_and_goes_on_in_its_own_tree(tmp_path: Path) -> None:
    def mending(request: Request) -> Reply | None:
        if "assign_task" in {tool.name for tool in request.tools}:
            return None
        told = [m for m in request.messages if m.role == "user" and "not accepted" in text_of(m)]
        last = request.messages[-1]
        if told and last is told[-1]:
            return Call("bash", {"command": "cat a.txt && echo done >> a.txt"})
        if told or last.role == "tool":
            return Call("submit", {"summary": "Wrote it."})
        return Call("create", {"path": "a.txt", "content": "draft\n"})

    def solo(request: Request) -> Reply | None:
        reply = lead(request)
        return reply[:1] if isinstance(reply, list) and reply[0].name == "assign_task" else reply

    bench = Bench(tmp_path, ScriptedBackend([mending, solo], entry=code_entry()))
    outcome = await bench.run(await bench.plan("Write a.txt.", check=("grep", "-q", "done", "a.txt")))
    assert (outcome.status, outcome.state.retries) == ("complete", 1)
    assert files_at(bench.repo, outcome.tip)["a.txt"] == "draft\ndone\n"


async def test_half_a_surrogate_pair_from_a_model_harms_nothing(tmp_path: Path) -> None:
    def odd(request: Request) -> Reply | None:
        if not is_subagent(request, "src/conf.py") or any(m.role == "tool" for m in request.messages):
            return None
        arguments = '{"path": "\\udc80.py", "name": "load_config"}'  # valid JSON, and no text
        call = ToolCall("functions.search:0", "search", arguments)
        return Completion(
            message=Message(role="assistant", content="", tool_calls=(call,)),
            finish_reason="tool_calls",
            usage=Usage(prompt_tokens=100, completion_tokens=10),
        )

    bench = Bench(tmp_path, ScriptedBackend([odd, *RULES]))
    outcome = await bench.run(await bench.plan())
    assert (outcome.status, files_at(bench.repo, outcome.tip)) == ("complete", RENAMED)
