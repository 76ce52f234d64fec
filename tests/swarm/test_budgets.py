"""spent + reserved never exceeds a ceiling, whoever asks when, and whatever is lost in a crash."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from session_parts import AT_ONCE, Bench, Crash, DyingJournal

from perilune.accounts.prices import PriceBook
from perilune.agent.loop import AnswerRecord, start
from perilune.agent.profiles import bundled_profile
from perilune.agent.sandbox import Sandbox
from perilune.backends.scripted import ScriptedBackend, prompt_tokens, scripted_entry
from perilune.chat.messages import Completion, Message, Request, Usage
from perilune.errors import BudgetExhausted
from perilune.settings import Settings
from perilune.swarm import events
from perilune.swarm.budgets import Purse
from perilune.swarm.events import Budget, Entry
from perilune.swarm.halt import Halt, Halted
from perilune.swarm.journal import Journal
from perilune.swarm.recorder import Recorder
from perilune.swarm.session import drive, replay
from perilune.swarm.state import SessionState, apply

ENTRY = scripted_entry()
PROFILE = bundled_profile("rename")
PRICES = PriceBook.load(Settings(home=Path("/nowhere")))


class Memory:
    """A journal that only keeps what it is given."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    async def append(self, entries: Sequence[Entry]) -> None:
        await asyncio.sleep(0)
        self.entries += entries


def beginning(agents: int, budget: Budget) -> list[events.Event]:
    started = events.SessionStarted(
        id="s",
        goal="Rename a to b in src.",
        repo="/repo",
        base="0" * 40,
        branch="perilune/s",
        entry=ENTRY,
        orchestrator=bundled_profile("orchestrate-rename"),
        subagent=PROFILE,
        profile_hashes={},
        budget=budget,
        files=tuple(f"{n}.py" for n in range(agents)),
    )
    begun: list[events.Event] = [started, events.AgentCreated(name="r", system_prompt="Rename a to b.")]
    for n in range(agents):
        name = f"a{n:04d}"
        begun += [
            events.AssignmentQueued(id=name, key=f"{n}.py", agent="r", prompt=f"{n}.py", stage=1, base="0"),
            events.AssignmentClaimed(id=name),
            events.AttemptStarted(id=name, attempt=0, base="0"),
        ]
    return begun


def over(state: SessionState) -> bool:
    spent, held, budget = state.spent, state.reserved, state.budget
    totals = {
        "steps": spent.steps + held.steps,
        "tokens": spent.tokens + held.tokens,
        "nano_usd": spent.nano_usd + held.nano_usd,
    }
    return any(
        getattr(budget, name) is not None and total > getattr(budget, name) for name, total in totals.items()
    )


async def spend(memory: Memory, agents: int, budget: Budget, seed: int) -> Halt:
    chance, halt = random.Random(seed), Halt()
    agent_state = start(PROFILE, model=ENTRY.id, prompt="0.py", system_prompt="Rename a to b.")
    request = Request(model=ENTRY.id, messages=agent_state.head, tools=PROFILE.tools, max_tokens=128)

    async def one(recorder: Recorder, purse: Purse, agent: str) -> None:
        for _ in range(6):
            held = purse.need(request, agent_state)
            await purse.reserve(agent, request, agent_state)
            for _ in range(chance.randint(0, 5)):
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                recorder.post(
                    events.ModelFailed(agent=agent, code="x", message="x", charged=chance.random() < 0.5)
                )
            else:
                answer = chance.randint(1, 128)
                usage = Usage(prompt_tokens=chance.randint(1, held.tokens - 128), completion_tokens=answer)
                said = Message(role="assistant", content="Done: 0 edits.")
                completion = Completion(message=said, finish_reason="stop", usage=usage)
                charge = purse.charge(usage)
                recorder.post(
                    events.ModelAnswered(agent=agent, record=AnswerRecord(completion), nano_usd=charge)
                )
            purse.settled()

    async with Recorder(memory, SessionState(), clock=lambda: 0) as recorder:
        await recorder.record(*beginning(agents, budget))
        purse = Purse(recorder, ENTRY, PRICES, halt)
        work = [one(recorder, purse, f"a{n:04d}") for n in range(agents)]
        for error in await asyncio.gather(*work, return_exceptions=True):
            assert error is None or isinstance(error, Halted)
    return halt


@settings(max_examples=40, deadline=None)
@given(
    agents=st.integers(1, 8),
    steps=st.integers(1, 60),
    tokens=st.none() | st.integers(1, 30_000),
    nano_usd=st.none() | st.integers(1, 40_000_000),
    seed=st.integers(0, 1_000),
)
def test_no_order_of_calls_exceeds_a_budget(
    agents: int, steps: int, tokens: int | None, nano_usd: int | None, seed: int
) -> None:
    memory, budget = Memory(), Budget(steps=steps, tokens=tokens, nano_usd=nano_usd)
    halt = asyncio.run(spend(memory, agents, budget, seed))
    state = SessionState()
    for entry in memory.entries:
        state = apply(state, entry)
        assert not over(state)
    assert state.reserved == type(state.reserved)()
    parts = [state.orchestrator_spent, *(one.spent for one in state.assignments.values())]
    for field in ("steps", "tokens", "nano_usd", "prompt_tokens", "completion_tokens"):
        assert sum(getattr(part, field) for part in parts) == getattr(state.spent, field)
    # Who was not stopped had all its calls; who was, was stopped by what is really short.
    calls = sum(isinstance(entry.event, events.ModelStarted) for entry in memory.entries)
    assert (calls == 6 * agents) if halt.error is None else isinstance(halt.error, BudgetExhausted)


def test_the_reservation_is_never_below_the_prompt() -> None:
    purse = Purse(Recorder(Memory(), SessionState()), ENTRY, PRICES, Halt())
    for prompt in ("a.py", "päckage/ünï.py" * 20, "x" * 5000):
        state = start(PROFILE, model=ENTRY.id, prompt=prompt, system_prompt="Rename a to b.")
        request = Request(model=ENTRY.id, messages=state.head, tools=PROFILE.tools, max_tokens=128)
        assert purse.need(request, state).tokens - 128 >= min(prompt_tokens(request), ENTRY.context_length)


async def test_calls_lost_in_a_crash_count_in_full_where_they_may_have_been_billed(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, ScriptedBackend(entry=msgspec.structs.replace(scripted_entry(), backend="upstream"))
    )
    plan = await bench.plan(tokens=60_000)
    lost_before = 0
    for _ in range(4):
        journal = Journal.open(bench.journal(plan))
        try:
            await drive(
                DyingJournal(journal, 21),
                replay(journal),
                plan,
                workspace_root=bench.journal(plan).with_suffix(""),
                backend=bench.backend,
                prices=PRICES,
                sandbox=Sandbox.probe(),
                patience=AT_ONCE,
            )
        except Crash:
            state = replay(journal)
            assert state.spent.lost_tokens >= lost_before
            assert not over(state)
            lost_before = state.spent.lost_tokens + sum(c.held.tokens for c in state.calls.values())
        finally:
            journal.close()
    outcome = await bench.run(plan.id)
    assert outcome.state.spent.lost_tokens == lost_before > 0
    assert outcome.state.lost_calls > 0
    assert not over(outcome.state)
