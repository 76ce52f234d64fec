"""What each way that a call can end says of its endpoint: whether others still go there, and since when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from loopback import Endpoint, error

from perilune.accounts.accounts import Accounts
from perilune.backends.access import Rule
from perilune.backends.affinity import in_order
from perilune.backends.base import ModelEntry, complete
from perilune.backends.breaker import FAILURES, FIRST_REST_S, Breaker
from perilune.backends.choose import open_backend
from perilune.backends.fleet import EndpointTable, Opened, _common_entry
from perilune.backends.replicas import Replica, Replicas
from perilune.backends.scripted import scripted_entry
from perilune.chat.messages import Event, Finished, Message, Request, TextDelta, Usage
from perilune.errors import (
    BackendInterrupted,
    BackendRateLimited,
    BackendRefused,
    BackendUnreachable,
    ContextTooLong,
    EngineGone,
    InputError,
    PeriluneError,
)
from perilune.settings import Settings

HELLO = [TextDelta("Hello"), Finished("stop", Usage(prompt_tokens=1, completion_tokens=1))]


@dataclass
class Told:
    """Does, call after call, what it is told: gives events, raises what is among them, and hangs at the end
    of a list without `Finished`."""

    plan: list[list[Event | PeriluneError]] = field(default_factory=list)
    counted: int | None = 1
    health: PeriluneError | None = None
    calls: int = 0

    async def models(self) -> tuple[ModelEntry, ...]:
        return (scripted_entry("m"),)

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        self.calls += 1
        events = self.plan.pop(0) if self.plan else HELLO
        for event in events:
            if isinstance(event, PeriluneError):
                raise event
            yield event
        if not any(isinstance(event, Finished) for event in events):
            await asyncio.Event().wait()

    async def ready(self) -> None:
        if self.health is not None:
            raise self.health

    async def count_tokens(self, request: Request) -> int | None:
        return self.counted

    async def close(self) -> None: ...


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Pair:
    """Two endpoints, `a` and `b`; the request's conversation belongs to `a`."""

    def __init__(self, *plan: list[Event | PeriluneError]) -> None:
        self.clock = Clock()
        self.told = {"a": Told(list(plan)), "b": Told()}
        self.replicas = [
            Replica(name, backend, breaker=Breaker(self.clock)) for name, backend in self.told.items()
        ]
        self.fleet = Replicas(scripted_entry("m"), self.replicas, retries=0)
        self.request = next(
            request
            for number in range(1000)
            if in_order(request := ask(number), self.replicas)[0].name == "a"
        )

    @property
    def calls(self) -> tuple[int, int]:
        return self.told["a"].calls, self.told["b"].calls

    @property
    def state(self) -> str:
        return self.replicas[0].breaker.state

    async def call(self) -> str:
        content = (await complete(self.fleet, self.request)).message.content
        assert isinstance(content, str)
        return content

    def open(self) -> None:
        """The endpoint `a` has failed; its rest is over."""
        self.replicas[0].breaker.failed(at_once=True)
        self.clock.now += FIRST_REST_S
        assert self.state == "half open"


def ask(number: int = 0) -> Request:
    return Request(model="m", messages=(Message(role="user", content=f"conversation {number}"),))


ABOUT_THE_REQUEST = [BackendRefused("bad"), ContextTooLong("long"), InputError("odd")]


@pytest.mark.parametrize("refusal", ABOUT_THE_REQUEST, ids=lambda one: type(one).__name__)
async def test_what_is_wrong_with_a_request_is_not_held_against_its_endpoint(refusal: PeriluneError) -> None:
    pair = Pair(*[[refusal] for _ in range(2 * FAILURES)])
    for _ in range(2 * FAILURES):
        with pytest.raises(type(refusal)):
            await pair.call()
    assert (pair.state, pair.calls) == ("closed", (2 * FAILURES, 0))


@pytest.mark.parametrize("refusal", ABOUT_THE_REQUEST, ids=lambda one: type(one).__name__)
async def test_a_refusal_shows_that_the_endpoint_is_back(refusal: PeriluneError) -> None:
    pair = Pair([refusal])
    pair.open()
    with pytest.raises(type(refusal)):
        await pair.call()
    assert pair.state == "closed"


async def test_an_overloaded_endpoint_rests_as_long_as_it_asks() -> None:
    pair = Pair([BackendRateLimited("busy", retry_after_s=30.0)])
    assert await pair.call() == "Hello"
    assert pair.calls == (1, 1)
    pair.clock.now += 29.9
    assert await pair.call() == "Hello"
    assert pair.calls == (1, 2)
    pair.clock.now += 0.1
    assert await pair.call() == "Hello"
    assert (pair.calls, pair.state) == ((2, 2), "closed")


async def test_an_overloaded_endpoint_that_asks_for_no_rest_gets_none() -> None:
    pair = Pair(*[[BackendRateLimited("busy")] for _ in range(2 * FAILURES)])
    for _ in range(2 * FAILURES):
        assert await pair.call() == "Hello"
    assert (pair.state, pair.calls) == ("closed", (2 * FAILURES, 2 * FAILURES))


async def test_answers_that_break_off_open_the_breaker() -> None:
    pair = Pair(*[[TextDelta("x"), BackendInterrupted("cut")] for _ in range(FAILURES)])
    for _ in range(FAILURES):
        with pytest.raises(BackendInterrupted):
            await pair.call()
        assert pair.fleet.members()[0].error == "cut"
    assert (pair.state, pair.calls) == ("open", (FAILURES, 0))
    assert await pair.call() == "Hello"
    assert pair.calls == (FAILURES, 1)


async def test_a_whole_answer_clears_what_broke_off_before() -> None:
    cut = [TextDelta("x"), BackendInterrupted("cut")]
    pair = Pair(*[plan for _ in range(FAILURES) for plan in (cut, HELLO)])
    for _ in range(FAILURES):
        with pytest.raises(BackendInterrupted):
            await pair.call()
        assert await pair.call() == "Hello"
        assert pair.fleet.members()[0].error == ""
    assert (pair.state, pair.calls) == ("closed", (2 * FAILURES, 0))


async def test_a_trial_whose_answer_breaks_off_opens_the_breaker_for_longer() -> None:
    pair = Pair(
        *[[BackendUnreachable("down")] for _ in range(FAILURES)], [TextDelta("x"), BackendInterrupted("cut")]
    )
    for _ in range(FAILURES):
        await pair.call()
    pair.clock.now += FIRST_REST_S
    events = pair.fleet.stream(pair.request)
    assert await anext(events) == TextDelta("x")
    assert pair.state == "closed"  # others need not wait for the answer's end
    with pytest.raises(BackendInterrupted):
        await anext(events)
    pair.clock.now += FIRST_REST_S
    assert pair.state == "open"
    pair.clock.now += FIRST_REST_S
    assert pair.state == "half open"


async def test_a_trial_that_is_given_up_lets_the_next_call_try() -> None:
    pair = Pair([])
    pair.open()
    trial = asyncio.create_task(pair.call())
    while not pair.told["a"].calls:  # noqa: ASYNC110  it has no event
        await asyncio.sleep(0)
    assert pair.state == "open"  # one at a time
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    assert pair.state == "half open"
    assert await pair.call() == "Hello"
    assert (pair.state, pair.calls) == ("closed", (2, 0))
    assert [member.running for member in pair.fleet.members()] == [0, 0]


async def test_a_call_that_its_caller_leaves_is_no_failure() -> None:
    pair = Pair(*[[TextDelta("x")] for _ in range(2 * FAILURES)])
    for _ in range(2 * FAILURES):
        async with aclosing(pair.fleet.stream(pair.request)) as events:  # type: ignore[type-var]
            await anext(events)
            assert pair.fleet.members()[0].running == 1
    assert (pair.state, pair.fleet.members()[0].running) == ("closed", 0)


async def test_probes_do_not_prolong_a_rest() -> None:
    pair = Pair()
    pair.told["a"].health = BackendUnreachable("down")
    for _ in range(FAILURES):
        await pair.fleet._probe(pair.replicas[0])
    assert pair.state == "open"
    for _ in range(5):
        pair.clock.now += FIRST_REST_S / 5
        await pair.fleet._probe(pair.replicas[0])
    assert pair.state == "half open"
    assert pair.fleet.members()[0].error == "down"


def test_a_shorter_wish_does_not_end_a_longer_rest() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    breaker.rest(10)
    breaker.rest(1)
    clock.now += 9.9
    assert not breaker.admit()
    clock.now += 0.1
    assert breaker.admit()


async def test_an_engine_that_died_hands_its_call_on() -> None:
    pair = Pair([EngineGone("gone")])
    assert await pair.call() == "Hello"
    assert pair.calls == (1, 1)


@pytest.mark.parametrize(
    ("counts", "most"), [((5, 9, 7), 9), ((9, 5, 7), 9), ((5, None, 7), None), ((None, 5, 7), None)]
)
async def test_a_prompt_is_counted_by_whoever_counts_most(
    counts: tuple[int | None, ...], most: int | None
) -> None:
    """So that the reservation holds wherever the call goes."""
    told = [Told(counted=counted) for counted in counts]
    replicas = [Replica(f"r{number}", one, region="eu") for number, one in enumerate(told)]
    assert await Replicas(scripted_entry("m"), replicas).count_tokens(ask()) == most


async def test_a_prompt_is_counted_by_those_that_may_serve_it(tmp_path: Path) -> None:
    replicas = [Replica("a", Told(counted=100), region="us"), Replica("b", Told(counted=5), region="eu")]
    fleet = Replicas(scripted_entry("m"), replicas, rules=(Rule(regions=("eu",)),))
    with Accounts.open(tmp_path, Settings(home=tmp_path)) as accounts:
        assert await fleet.serving(accounts.local_principal()).count_tokens(ask()) == 5


def test_a_model_takes_the_media_that_all_its_endpoints_take() -> None:
    media = (("text", "image", "video"), ("text", "image"), ("text", "video", "image"))
    opened = [
        Opened(
            EndpointTable(name=f"e{number}", url="http://x/v1"),
            msgspec.structs.replace(scripted_entry("m"), modalities=one),
        )
        for number, one in enumerate(media)
    ]
    assert _common_entry("m", opened).modalities == ("text", "image")


async def test_a_model_is_what_all_its_endpoints_can_do(tmp_path: Path) -> None:
    tables: list[dict[str, Any]] = [
        {"name": "a", "context": 9000, "max_output": 500},
        {"name": "b", "context": 5000, "max_output": 4000},
    ]
    async with Endpoint([error(404)]) as endpoint:
        backends = tuple(table | {"url": endpoint.url, "model": "m"} for table in tables)
        backend = await open_backend(Settings(home=tmp_path, backends=backends))
        (entry,) = await backend.models()
        await backend.close()
    assert (entry.context_length, entry.max_output_tokens) == (5000, 500)
