"""What goes wrong around a session stops it resumably, at once, and costs nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from session_parts import FILES, RENAMED, Bench, code_entry, files_at, git
from test_session_resume import crash_after, entries_of, lead

from perilune.accounts.prices import PriceBook
from perilune.agent.sandbox import Sandbox
from perilune.backends.scripted import Call, Reply, ScriptedBackend, scripted_entry, text_of
from perilune.chat.messages import Event, Request
from perilune.errors import LimitReached, RepositoryError, StoreError
from perilune.swarm import bases as bases_module
from perilune.swarm import repository as repository_module
from perilune.swarm.bases import Bases
from perilune.swarm.budgets import Purse
from perilune.swarm.events import DeadLettered, Merged
from perilune.swarm.halt import Halt, Halted, Interrupted, halting
from perilune.swarm.journal import Journal
from perilune.swarm.repository import Repository
from perilune.swarm.session import drive, replay


class Refusing(ScriptedBackend):
    """Refuses the first calls for want of money."""

    def __init__(self, *refusals: LimitReached) -> None:
        super().__init__()
        self.refusals = list(refusals)
        self.calls = 0

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        self.calls += 1
        if self.refusals:
            raise self.refusals.pop(0)
        async for event in super().stream(request):
            yield event


async def test_a_key_without_money_stops_the_session_at_its_first_call(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Refusing(LimitReached("the budget of the key k does not cover this call")))
    outcome = await bench.run(await bench.plan())
    assert (outcome.status, outcome.exit_code) == ("stopped", LimitReached.exit_code)
    assert isinstance(outcome.error, LimitReached)
    assert bench.backend.calls == 1  # type: ignore[attr-defined]


async def test_money_that_calls_under_way_hold_is_waited_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Refusing(*(LimitReached("held", passing=True) for _ in range(3))))
    outcome = await bench.run(await bench.plan())
    assert (outcome.status, outcome.state.failed_calls) == ("complete", 3)


async def test_who_waits_for_the_budget_hears_of_the_halt() -> None:
    halt = Halt()
    purse = Purse.__new__(Purse)
    purse._settled = asyncio.Event()
    halt.wake(purse._settled)
    waiting = asyncio.create_task(purse._settled.wait())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError), halting(halt):
        raise RuntimeError("a defect")
    await asyncio.wait_for(waiting, 5)
    with pytest.raises(Halted):
        halt.check()


class FullDisk:
    """A journal with room for so many entries."""

    def __init__(self, journal: Journal, left: int) -> None:
        self._journal, self._left = journal, left

    async def append(self, entries: object) -> None:
        self._left -= len(entries)  # type: ignore[arg-type]
        if self._left < 0:
            raise StoreError("no space left")
        await self._journal.append(entries)  # type: ignore[arg-type]


class OneWaits(ScriptedBackend):
    """Counts the sub-agents' calls, and never answers them."""

    def __init__(self, entry: str) -> None:
        super().__init__(entry=msgspec.structs.replace(scripted_entry(), backend=entry))
        self.silent: list[str] = []
        self.asked = asyncio.Event()

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        if any(tool.name == "search" for tool in request.tools):
            self.silent.append(text_of(request.messages[-1]))
            self.asked.set()
            await asyncio.Event().wait()
        async for event in super().stream(request):
            yield event


async def test_a_call_that_only_waited_for_its_turn_is_not_charged_at_a_kill(tmp_path: Path) -> None:
    bench, stop = Bench(tmp_path, OneWaits("upstream")), asyncio.Event()
    plan = await bench.plan()
    running = asyncio.create_task(bench.run(plan, stop=stop))
    await bench.backend.asked.wait()  # type: ignore[attr-defined]
    stop.set()
    outcome = await running
    assert len(bench.backend.silent) == 1  # type: ignore[attr-defined]
    assert outcome.state.lost_calls == 1
    assert isinstance(outcome.error, Interrupted)
    assert f"perilune swarm resume {plan.id}" in str(outcome.error)


async def test_trouble_with_git_is_written_down_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> tuple[str, ...]:
        raise RepositoryError("git ls-tree failed: no space left on device")

    def look(request: Request) -> Reply:
        return Call("list_files", {"dir": ".", "page": 1}) if len(request.messages) < 3 else "Seen."

    bench = Bench(tmp_path, ScriptedBackend(look, entry=code_entry()))
    plan = await bench.plan("Look around.")
    with monkeypatch.context() as patch:
        patch.setattr(Repository, "tracked_files", broken)
        outcome = await bench.run(plan)
    assert (outcome.status, outcome.state.stop_reason, outcome.exit_code) == (
        "stopped",
        "repository_error",
        2,
    )
    assert (await bench.run(plan.id)).status == "complete"


async def test_a_branch_of_other_origin_stops_the_session_in_words(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    plan = await bench.plan()
    other = git(bench.repo, "commit-tree", "-m", "other", f"{bench.base}^{{tree}}")
    git(bench.repo, "branch", plan.started.branch, other)
    outcome = await bench.run(plan)
    assert (outcome.status, outcome.state.stop_reason) == ("stopped", "repository_error")
    git(bench.repo, "branch", "-D", plan.started.branch)
    assert (await bench.run(plan.id)).status == "complete"


async def test_a_branch_that_the_user_deleted_comes_back_with_what_was_merged(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    plan = await bench.plan()
    await bench.run(plan)
    merged = next(e.seq for e in entries_of(bench, plan) if isinstance(e.event, Merged))
    plan = await bench.plan()
    await crash_after(bench, plan, merged)
    git(bench.repo, "branch", "-D", plan.started.branch)
    outcome = await bench.run(plan.id)
    assert (outcome.status, files_at(bench.repo, outcome.tip)) == ("complete", RENAMED)


def helpless(request: Request) -> Reply:
    return "Failed: cannot."


async def test_a_task_that_failed_is_not_handed_out_again_by_a_crash(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ScriptedBackend([lead, helpless], entry=code_entry()))
    plan = await bench.plan("Write a.txt.", retries=0)
    whole = await bench.run(plan)
    assert whole.state.spent.steps == 4
    buried = next(e.seq for e in entries_of(bench, plan) if isinstance(e.event, DeadLettered))
    plan = await bench.plan("Write a.txt.", retries=0)
    await crash_after(bench, plan, buried)
    outcome = await bench.run(plan.id)
    assert outcome.state.assignments["a0001"].handed_out == 1
    assert outcome.state.spent.steps == whole.state.spent.steps


async def test_a_checkout_that_was_half_removed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path) -> None:
        (folder / "README.md").unlink()
        raise KeyboardInterrupt

    bench = Bench(tmp_path)
    repository = await Repository.open(bench.repo)
    root = tmp_path / "session"
    bases = Bases(root, repository)
    await bases.checkout(bench.base)
    with monkeypatch.context() as patch:
        patch.setattr(repository_module, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            bases_module.discard_export(root / f"base-{bench.base[:16]}")
    folder = await Bases(root, repository).checkout(bench.base)
    assert {path for path in FILES if (folder / path).is_file()} == set(FILES)


async def test_only_what_nobody_needs_when_asked_is_removed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bases = Bases(tmp_path / "session", await Repository.open(bench.repo))
    kept = await bases.checkout(bench.base)
    await bases.keep_only(lambda: {bench.base})
    assert kept.is_dir()
    await bases.keep_only(set)
    assert not kept.exists()
    assert (await bases.checkout(bench.base)).is_dir()


async def test_a_journal_of_a_newer_version_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    plan = await bench.plan()
    await crash_after(bench, plan, 5)
    monkeypatch.setattr("perilune.swarm.events.VERSION", 0)
    with pytest.raises(StoreError, match="newer version"):
        await bench.run(plan.id)


async def test_a_full_disk_leaves_nobody_waiting(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    plan = await bench.plan()
    journal = Journal.open(bench.journal(plan))
    try:
        with pytest.raises(StoreError, match="no space"):
            await asyncio.wait_for(
                drive(
                    FullDisk(journal, 30),
                    replay(journal),
                    plan,
                    workspace_root=bench.journal(plan).with_suffix(""),
                    backend=bench.backend,
                    prices=PriceBook.load(bench.settings),
                    sandbox=Sandbox.probe(),
                ),
                30,
            )
    finally:
        journal.close()
    assert (await bench.run(plan.id)).status == "complete"
