"""The one egress: each way a call can end leaves one settled row and no reservation."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from perilune.accounts.accounts import Accounts
from perilune.accounts.rows import Charge, UsageRow
from perilune.backends.base import ModelEntry, complete
from perilune.backends.metered import LEAST_ANSWER, MeteredBackend
from perilune.backends.scripted import ScriptedBackend, scripted_entry
from perilune.chat.messages import (
    Event,
    Finished,
    ImagePart,
    Message,
    Request,
    TextDelta,
    Tool,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from perilune.errors import (
    BackendInterrupted,
    BackendUnreachable,
    ConfigError,
    InputError,
    LimitReached,
    NotFound,
)
from perilune.settings import Settings

USAGE = Usage(prompt_tokens=1200, cached_tokens=900, completion_tokens=300, reasoning_tokens=40)
COST = 300 * 950 + 900 * 160 + 300 * 4000


class Inner:
    """Streams what it is told to; knows whether its stream was closed."""

    def __init__(
        self,
        events: Callable[[Request], AsyncIterator[Event]],
        counted: int | None = 50,
        entry: ModelEntry | None = None,
    ) -> None:
        self._events = events
        self._counted = counted
        self._entry = entry or scripted_entry()
        self.closed = False
        self.requests: list[Request] = []
        self.called = asyncio.Event()

    async def models(self) -> tuple[ModelEntry, ...]:
        return (self._entry,)

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        self.requests.append(request)
        self.called.set()
        try:
            async for event in self._events(request):
                yield event
        finally:
            self.closed = True

    async def count_tokens(self, request: Request) -> int | None:
        return self._counted

    async def close(self) -> None:
        return None


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    with Accounts.open(tmp_path, Settings(home=tmp_path)) as accounts:
        yield accounts
        accounts.set_key_budget(1, None)  # comes after all writes that nobody waited for
        assert accounts.verify() == ()
        assert all(row.outcome != "open" for row in accounts.usage_rows())


def ask(text: str = "hi", **more: object) -> Request:
    return Request(model="scripted", messages=(Message(role="user", content=text),), **more)  # type: ignore[arg-type]


def only_row(accounts: Accounts) -> UsageRow:
    (row,) = accounts.usage_rows()
    return row


async def whole(request: Request) -> AsyncIterator[Event]:
    yield TextDelta("hello")
    yield Finished("stop", USAGE)


async def endless(request: Request) -> AsyncIterator[Event]:
    yield TextDelta("a" * 40)
    yield ToolCallStarted(0, "functions.f:0", "ffff")
    yield ToolCallDelta(0, "{" + " " * 39)
    await asyncio.Event().wait()


async def test_a_whole_call_is_settled_before_its_last_event(accounts: Accounts) -> None:
    heard: list[Charge] = []
    backend = MeteredBackend(Inner(whole), accounts, accounts.local_principal(), on_charge=heard.append)
    call = backend.call(ask(), request_id="mine")
    async for event in call:
        row = only_row(accounts)
        assert row.request_id == "mine"
        assert row.outcome == ("finished" if isinstance(event, Finished) else "open")
    assert call.charge is not None
    assert (call.charge.nano_usd, call.charge.estimated) == (COST, False)
    assert heard == [call.charge]
    row = only_row(accounts)
    assert (row.charge, row.uncached, row.cached, row.output, row.reasoning) == (COST, 300, 900, 300, 40)


async def test_complete_gives_answer_and_charge(accounts: Accounts) -> None:
    backend = MeteredBackend(ScriptedBackend(lambda request: "yes"), accounts, accounts.local_principal())
    completion, charge = await backend.complete(ask())
    assert completion == await complete(backend, ask())
    book = accounts.prices
    assert charge.nano_usd == book.charge("kimi-k2.6", completion.usage)
    assert len(accounts.usage_rows()) == 2


async def test_the_inner_call_is_held_to_what_was_reserved(accounts: Accounts) -> None:
    inner = Inner(whole, counted=8000)
    backend = MeteredBackend(inner, accounts, accounts.local_principal())
    await complete(backend, ask())
    await complete(backend, ask(max_tokens=7))
    assert [request.max_tokens for request in inner.requests] == [192, 7]  # context 8192
    first, second = reversed(accounts.usage_rows())
    assert first.reserved == 8000 * 950 + 192 * 4000
    assert second.reserved == 8000 * 950 + 7 * 4000


async def test_an_open_length_is_cut_to_what_the_budget_covers(accounts: Accounts) -> None:
    inner = Inner(whole)
    secret = accounts.create_key("small", budget=50 * 950 + (LEAST_ANSWER + 44) * 4000)
    backend = MeteredBackend(inner, accounts, accounts.authenticate(secret, "chat"))
    call = backend.call(ask())
    async with aclosing(call):
        await anext(call)
        assert inner.requests[0].max_tokens == LEAST_ANSWER + 44
        with pytest.raises(LimitReached):  # nothing is left, not even for the shortest answer
            await complete(backend, ask())
    accounts.set_key_budget(3, only_row(accounts).charge + 50 * 950 + (LEAST_ANSWER - 1) * 4000)
    with pytest.raises(LimitReached):
        await complete(backend, ask())
    await complete(backend, ask(max_tokens=LEAST_ANSWER - 1))  # a length that was asked for has no floor
    assert inner.requests[-1].max_tokens == LEAST_ANSWER - 1


async def test_an_open_length_leaves_room_for_an_uncounted_prompt(accounts: Accounts) -> None:
    backend = MeteredBackend(Inner(whole, counted=None), accounts, accounts.local_principal())
    quote = await backend.quote(ask("word " * 5800))
    assert quote.prompt_estimate + quote.max_tokens == 8192
    assert quote.least_tokens == LEAST_ANSWER


async def test_a_quote_is_made_once(accounts: Accounts) -> None:
    backend = MeteredBackend(Inner(whole), accounts, accounts.local_principal())
    quote = await backend.quote(ask(max_tokens=10))
    assert quote.nano_usd == 50 * 950 + 10 * 4000
    await backend.complete(ask(max_tokens=10), quote=quote)
    assert only_row(accounts).reserved == quote.nano_usd


async def test_what_cannot_be_counted_is_bounded_by_its_bytes(accounts: Accounts) -> None:
    backend = MeteredBackend(Inner(whole, counted=None), accounts, accounts.local_principal())
    text = "ä" * 500
    quote = await backend.quote(ask(text, tools=(Tool(name="f", description="d" * 100),)))
    assert 1100 < quote.prompt_bound < 1500
    assert quote.prompt_estimate < quote.prompt_bound / 3
    image = Message(role="user", content=(ImagePart("data:image/png;base64,AA"),))
    quote = await backend.quote(Request(model="scripted", messages=(image,)))
    assert quote.prompt_bound == 8192


async def test_the_caller_leaves_after_some_events(accounts: Accounts) -> None:
    inner = Inner(endless)
    call = MeteredBackend(inner, accounts, accounts.local_principal()).call(ask())
    async with aclosing(call):
        async for event in call:
            if isinstance(event, ToolCallDelta):
                break
    assert inner.closed
    row = only_row(accounts)
    assert (row.outcome, row.estimated, row.uncached, row.output) == ("aborted", True, 50, 21)
    assert call.charge is not None and call.charge.nano_usd == row.charge == 50 * 950 + 21 * 4000


async def test_the_caller_is_cancelled(accounts: Accounts) -> None:
    inner = Inner(endless)
    backend = MeteredBackend(inner, accounts, accounts.local_principal())
    task = asyncio.ensure_future(complete(backend, ask()))
    await inner.called.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inner.closed
    assert (only_row(accounts).outcome, only_row(accounts).estimated) == ("aborted", True)


@pytest.mark.parametrize("turns", range(12))
async def test_cancelled_twice_at_any_moment(accounts: Accounts, turns: int) -> None:
    """Also in the middle of the reservation: no row stays open (the fixture looks)."""
    backend = MeteredBackend(Inner(endless), accounts, accounts.local_principal())
    task = asyncio.ensure_future(complete(backend, ask()))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_failure_before_the_first_event_costs_nothing(accounts: Accounts) -> None:
    async def refused(request: Request) -> AsyncIterator[Event]:
        raise BackendUnreachable("refused")
        yield  # a generator

    call = MeteredBackend(Inner(refused), accounts, accounts.local_principal()).call(ask())
    with pytest.raises(BackendUnreachable):
        [event async for event in call]
    row = only_row(accounts)
    assert (row.outcome, row.charge, row.estimated) == ("failed", 0, False)
    assert call.charge is not None and call.charge.nano_usd == 0


@pytest.mark.parametrize(
    "usage",
    [Usage(), Usage(prompt_tokens=10**30), Usage(prompt_tokens=5, completion_tokens=10**30)],
)
async def test_an_endpoint_that_does_not_count_is_estimated_not_free(
    accounts: Accounts, usage: Usage
) -> None:
    async def uncounted(request: Request) -> AsyncIterator[Event]:
        yield TextDelta("a" * 41)
        yield Finished("stop", usage)

    backend = MeteredBackend(Inner(uncounted), accounts, accounts.local_principal())
    completion, charge = await backend.complete(ask())
    assert completion.usage == Usage(prompt_tokens=50, completion_tokens=11)
    assert (charge.outcome, charge.estimated, charge.nano_usd) == ("finished", True, 50 * 950 + 11 * 4000)


@pytest.mark.parametrize("raises", [True, False])
async def test_a_cut_stream_is_settled_for_what_arrived(accounts: Accounts, raises: bool) -> None:
    async def cut(request: Request) -> AsyncIterator[Event]:
        yield TextDelta("a" * 41)
        if raises:
            raise BackendInterrupted("cut")

    with pytest.raises(BackendInterrupted):
        await complete(MeteredBackend(Inner(cut), accounts, accounts.local_principal()), ask())
    row = only_row(accounts)
    assert (row.outcome, row.estimated, row.output) == ("failed", True, 11)


async def test_an_answer_that_was_to_go_out_whole_and_failed_costs_nothing(accounts: Accounts) -> None:
    async def cut(request: Request) -> AsyncIterator[Event]:
        yield TextDelta("a" * 41)
        raise BackendInterrupted("cut")

    backend = MeteredBackend(Inner(cut), accounts, accounts.local_principal())
    call = backend.call(ask(), whole=True)
    with pytest.raises(BackendInterrupted):
        [event async for event in call]
    row = only_row(accounts)
    assert (row.outcome, row.charge, row.uncached, row.output) == ("failed", 0, 0, 0)


async def test_what_a_leaving_client_got_counts_a_token_a_piece_at_least(accounts: Accounts) -> None:
    async def letters(request: Request) -> AsyncIterator[Event]:
        for _ in range(1000):
            yield TextDelta("a")

    call = MeteredBackend(Inner(letters), accounts, accounts.local_principal()).call(ask(), whole=True)
    async with aclosing(call):
        for _ in range(200):
            await anext(call)
    row = only_row(accounts)
    assert (row.outcome, row.estimated, row.output) == ("aborted", True, 200)


async def test_who_closes_a_call_for_an_error_says_so(accounts: Accounts) -> None:
    call = MeteredBackend(Inner(endless), accounts, accounts.local_principal()).call(ask(), whole=True)
    with pytest.raises(ZeroDivisionError):
        async with aclosing(call):
            async for _ in call:
                call.outcome_if_left = "failed"
                raise ZeroDivisionError
    assert (only_row(accounts).outcome, only_row(accounts).charge) == ("failed", 0)


async def test_an_estimate_is_no_more_than_what_was_reserved(accounts: Accounts) -> None:
    async def letters(request: Request) -> AsyncIterator[Event]:
        for _ in range(100):
            yield TextDelta("a")
        yield Finished("stop", Usage())

    backend = MeteredBackend(Inner(letters), accounts, accounts.local_principal())
    _, charge = await backend.complete(msgspec.structs.replace(ask(), max_tokens=7))
    row = only_row(accounts)
    assert (row.estimated, row.output) == (True, 7) and charge.nano_usd <= row.reserved


async def test_exactly_the_calls_that_the_budget_covers_reach_the_model(accounts: Accounts) -> None:
    bound = 50 * 950 + 10 * 4000
    principal = accounts.authenticate(accounts.create_key("small", budget=5 * bound), "chat")
    gate = asyncio.Event()

    async def gated(request: Request) -> AsyncIterator[Event]:
        await gate.wait()
        yield Finished("stop", Usage(prompt_tokens=50, completion_tokens=10))

    inner = Inner(gated)
    backend = MeteredBackend(inner, accounts, principal)
    tasks = [asyncio.ensure_future(complete(backend, ask(max_tokens=10))) for _ in range(60)]
    waiting = set(tasks)
    while len(waiting) > 5:
        _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(one, LimitReached) for one in results) == 55
    assert len(inner.requests) == 5
    with pytest.raises(LimitReached):
        await complete(backend, ask(max_tokens=10))


async def test_a_price_that_the_book_lacks_is_refused_before_a_row(accounts: Accounts) -> None:
    inner = Inner(whole, entry=msgspec.structs.replace(scripted_entry(), price="gold"))
    with pytest.raises(ConfigError, match="no price 'gold'"):
        await complete(MeteredBackend(inner, accounts, accounts.local_principal()), ask())
    assert inner.requests == []
    assert accounts.usage_rows() == []


async def test_an_unknown_model_is_refused_before_a_row(accounts: Accounts) -> None:
    backend = MeteredBackend(Inner(whole), accounts, accounts.local_principal())
    with pytest.raises(NotFound, match=r"gpt.*models served: scripted"):
        await complete(backend, Request(model="gpt", messages=ask().messages))
    assert accounts.usage_rows() == []


@pytest.mark.parametrize("inner", [ScriptedBackend(), Inner(whole, counted=None)], ids=["counted", "guessed"])
async def test_a_text_that_is_none_is_refused_by_its_place(
    accounts: Accounts, inner: ScriptedBackend | Inner
) -> None:
    request = msgspec.structs.replace(ask(), messages=(*ask().messages, *ask("a\ud83c").messages))
    with pytest.raises(InputError, match=r"messages\[1\].content: holds half a surrogate pair"):
        await complete(MeteredBackend(inner, accounts, accounts.local_principal()), request)
    assert not accounts.usage_rows()
