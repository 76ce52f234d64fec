"""Whatever event the process dies after, the session goes on to the same result."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from session_parts import (
    FILES,
    RENAMED,
    Bench,
    Crash,
    DyingJournal,
    code_entry,
    files_at,
    task_commits,
    tree_of,
)

from perilune.accounts.prices import PriceBook
from perilune.agent.sandbox import Sandbox
from perilune.backends.scripted import Call, Reply, ScriptedBackend
from perilune.chat.messages import Request
from perilune.swarm.events import Entry, ToolStarted
from perilune.swarm.journal import Journal, JournalReader
from perilune.swarm.session import Plan, drive, replay
from perilune.swarm.state import SessionState, apply, fold

SHARES = 4
"""The events are shared out over so many tests, which may run on several cores."""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def crash_after(bench: Bench, plan: Plan, entries: int) -> None:
    """Run the session in a process that lasts for so many journal entries, counted from now."""
    journal = Journal.open(bench.journal(plan))
    try:
        with pytest.raises(Crash):
            await drive(
                DyingJournal(journal, entries),
                replay(journal),
                plan,
                workspace_root=bench.journal(plan).with_suffix(""),
                backend=bench.backend,
                prices=PriceBook.load(bench.settings),
                sandbox=Sandbox.probe(),
            )
    finally:
        journal.close()


def entries_of(bench: Bench, plan: Plan) -> list[Entry]:
    reader = JournalReader(bench.journal(plan))
    try:
        return list(reader.read())
    finally:
        reader.close()


def within_budget(entries: list[Entry]) -> bool:
    """spent + reserved stays below every ceiling after every single event."""
    state = SessionState()
    for entry in entries:
        state = apply(state, entry)
        spent, held, budget = state.spent, state.reserved, state.budget
        if spent.steps + held.steps > budget.steps:
            return False
        if budget.tokens is not None and spent.tokens + held.tokens > budget.tokens:
            return False
        if budget.nano_usd is not None and spent.nano_usd + held.nano_usd > budget.nano_usd:
            return False
    return True


async def test_the_state_of_a_run_is_the_fold_of_its_journal(bench: Bench) -> None:
    plan = await bench.plan()
    outcome = await bench.run(plan)
    assert (outcome.status, outcome.not_done) == ("complete", ())
    assert files_at(bench.repo, outcome.tip) == RENAMED
    assert fold(entries_of(bench, plan)) == outcome.state
    assert outcome.state.seq <= 120


@pytest.mark.parametrize("share", range(SHARES))
async def test_a_session_survives_the_loss_of_its_process_after_every_event(bench: Bench, share: int) -> None:
    plan = await bench.plan()
    whole = await bench.run(plan)
    wanted = tree_of(bench.repo, whole.tip)
    for entries in range(1 + share, whole.state.seq, SHARES):
        plan = await bench.plan(tokens=200_000)
        await crash_after(bench, plan, entries)
        outcome = await bench.run(plan.id)
        where = f"died after {entries}"
        assert (outcome.status, outcome.message) == ("complete", whole.message), where
        assert tree_of(bench.repo, outcome.tip) == wanted, where
        assert task_commits(bench.repo, plan.started.base, outcome.tip) == ["a0001", "a0002"], where
        written = entries_of(bench, plan)
        assert fold(written) == outcome.state, where
        assert within_budget(written), where
        assert outcome.state.spent.steps == whole.state.spent.steps, where
        assert outcome.state.merges == 2 and outcome.state.retries == 0, where
        assert not bench.journal(plan).with_suffix("").exists(), where


def lead(request: Request) -> Reply | None:
    if "assign_task" not in {tool.name for tool in request.tools}:
        return None
    match sum(m.role == "assistant" for m in request.messages):
        case 0:
            return Call("create_subagent", {"name": "coder", "system_prompt": "Write small files."})
        case 1:
            return Call("assign_task", {"agent": "coder", "prompt": "Write a.txt"})
        case _:
            return "Written."


def coder(request: Request) -> Reply | None:
    match sum(m.role == "assistant" for m in request.messages):
        case 0:
            return Call("create", {"path": "a.txt", "content": "draft\n"})
        case 1:
            return Call("bash", {"command": "echo once >> a.txt; echo more > b.txt; rm README.md"})
        case 2:
            return Call("bash", {"command": "cat b.txt >> a.txt; rm b.txt"})
        case _:
            return Call("submit", {"summary": "Wrote a.txt."})


async def test_a_command_that_was_cut_off_runs_again_in_the_tree_it_began_in(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ScriptedBackend([lead, coder], entry=code_entry()))
    plan = await bench.plan("Write a.txt.")
    whole = await bench.run(plan)
    wanted = {**FILES, "a.txt": "draft\nonce\nmore\n"}
    del wanted["README.md"]
    assert files_at(bench.repo, whole.tip) == wanted
    tools = [entry.seq for entry in entries_of(bench, plan) if isinstance(entry.event, ToolStarted)]
    for entries in sorted({*tools[3:5], *(seq + 1 for seq in tools[3:5])}):
        plan = await bench.plan("Write a.txt.")
        await crash_after(bench, plan, entries)
        # What a killed command left behind is not what the journal knows.
        for left in bench.journal(plan).with_suffix("").glob("work/a0001.0/upper"):
            (left / "a.txt").write_text("half a")
            (left / "stray.txt").write_text("stray")
        outcome = await bench.run(plan.id)
        assert (outcome.status, files_at(bench.repo, outcome.tip)) == ("complete", wanted), entries
        assert fold(entries_of(bench, plan)) == outcome.state


async def test_a_git_that_is_killed_is_started_again(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("git")
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "git"
    # Each command line dies once of SIGKILL, some before their work, some after it.
    shim.write_text(
        f"""#!/bin/sh
case "$*" in *fast-import*|*merge-tree*|*commit-tree*|*update-ref*) ;; *) exec {real} "$@" ;; esac
key=$(echo "$*" | cksum | cut -d' ' -f1)
[ -e {tmp_path}/$key ] && exec {real} "$@"
touch {tmp_path}/$key
[ $((key % 2)) = 1 ] && {real} "$@" >/dev/null
kill -9 $$
"""
    )
    shim.chmod(0o755)
    plan = await bench.plan()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
        outcome = await bench.run(plan)
    assert outcome.error is None
    assert (outcome.status, files_at(bench.repo, outcome.tip)) == ("complete", RENAMED)
    assert task_commits(bench.repo, plan.started.base, outcome.tip) == ["a0001", "a0002"]


async def test_a_session_may_lose_its_process_again_and_again(bench: Bench) -> None:
    plan = await bench.plan()
    for _ in range(8):
        await crash_after(bench, plan, 11)
    outcome = await bench.run(plan.id)
    assert (outcome.status, files_at(bench.repo, outcome.tip)) == ("complete", RENAMED)
    assert task_commits(bench.repo, plan.started.base, outcome.tip) == ["a0001", "a0002"]
    assert outcome.state.resumes == 8


async def test_a_lock_that_a_killed_git_left_on_the_branch_is_taken_away(bench: Bench) -> None:
    plan = await bench.plan()
    folder = bench.repo / ".git/refs/heads/perilune"
    folder.mkdir(parents=True)
    lock = folder / f"{plan.id}.lock"
    lock.touch()  # while the branch was made
    await crash_after(bench, plan, 40)
    lock.touch()  # while it was moved
    outcome = await bench.run(plan.id)
    assert (outcome.status, files_at(bench.repo, outcome.tip)) == ("complete", RENAMED)
