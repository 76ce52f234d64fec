"""Faults on purpose: the right kinds, by content, at about the rates asked for."""

import asyncio
import json
from collections import Counter

import pytest

from perilune.backends.base import complete
from perilune.backends.faulty import KINDS, FaultPlan, FaultyBackend
from perilune.backends.scripted import Call, ScriptedBackend
from perilune.chat.messages import Message, Request
from perilune.errors import BackendError, BackendInterrupted, ConfigError

EDIT = Call("replace_word", {"path": "a.py", "line": 3, "old_name": "foo", "new_name": "bar"})


def ask(text: str) -> Request:
    words = ("Rename", "foo", "to", "bar")
    return Request(
        model="scripted",
        messages=(Message(role="user", content=text),),
        argument_choices={"replace_word": {"new_name": words, "path": ("a.py",)}},
    )


def faulty(plan: FaultPlan, reply: Call | str = EDIT) -> FaultyBackend:
    return FaultyBackend(ScriptedBackend(lambda request: reply), plan)


def test_faults_follow_content_and_seed_at_their_rates() -> None:
    plan = FaultPlan(seed=1, error=0.1, stall=0.1, cut=0.1, broken_json=0.1, wrong_edit=0.1)
    requests = [ask(str(number)) for number in range(2000)]
    first = [plan.fault(request) for request in requests]
    assert first == [plan.fault(request) for request in requests]
    assert first != [FaultPlan(seed=2, error=0.5).fault(request) for request in requests]
    counts = Counter(first)
    assert all(140 < counts[kind] < 260 for kind in KINDS)


async def test_an_error_comes_before_the_first_event_and_passes_on_retry() -> None:
    backend = faulty(FaultPlan(error=1.0))
    kinds = set()
    for number in range(30):
        with pytest.raises(BackendError) as caught:
            await complete(backend, ask(str(number)))
        kinds.add(type(caught.value).__name__)
        await complete(backend, ask(str(number)))
    assert kinds == {"BackendUnreachable", "BackendRateLimited", "BackendError"}


async def test_a_fault_without_repeats_stays() -> None:
    backend = faulty(FaultPlan(error=1.0, repeats=0))
    for _ in range(3):
        with pytest.raises(BackendError):
            await complete(backend, ask("x"))


async def test_a_cut_stream_is_interrupted_after_some_events() -> None:
    backend = faulty(FaultPlan(cut=1.0, repeats=0))
    seen = set()
    for number in range(20):
        events = []
        with pytest.raises(BackendInterrupted):
            async for event in backend.stream(ask(str(number))):
                events.append(event)
        seen.add(len(events))
    assert seen == {0, 1, 2}  # of three: never the whole answer


async def test_broken_arguments_do_not_parse() -> None:
    backend = faulty(FaultPlan(broken_json=1.0, repeats=0))
    for number in range(20):
        call = (await complete(backend, ask(str(number)))).message.tool_calls[0]
        with pytest.raises(ValueError):
            json.loads(call.arguments)


async def test_a_wrong_edit_is_well_formed_allowed_and_wrong() -> None:
    backend = faulty(FaultPlan(wrong_edit=1.0, repeats=0))
    names = set()
    for number in range(30):
        call = (await complete(backend, ask(str(number)))).message.tool_calls[0]
        arguments = json.loads(call.arguments)
        assert {**arguments, "new_name": "bar"} == EDIT.arguments
        names.add(arguments["new_name"])
    assert names == {"Rename", "foo", "to"}


async def test_text_answers_pass_the_tool_faults() -> None:
    for plan in (FaultPlan(wrong_edit=1.0), FaultPlan(broken_json=1.0)):
        assert (await complete(faulty(plan, "Done."), ask("x"))).message.content == "Done."


async def test_a_stall_lasts_until_the_caller_gives_up() -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(complete(faulty(FaultPlan(stall=1.0)), ask("x")), 0.02)


def test_rates_above_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="plan"):
        FaultPlan(error=0.6, cut=0.6)
