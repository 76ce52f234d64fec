"""What a call reserves, and how long its answer may be, over random prompts, budgets and balances: never too
little, never more than is there, and never less than could have been."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from perilune.accounts.accounts import Accounts
from perilune.accounts.keys import Principal
from perilune.backends.base import ModelEntry
from perilune.backends.metered import LEAST_ANSWER, MeteredBackend
from perilune.backends.quotes import MARKER_TOKENS
from perilune.backends.scripted import scripted_entry
from perilune.chat.messages import Event, Message, Request, TextDelta, Tool, ToolCall
from perilune.chat.template import prompt_ids
from perilune.chat.tokenizer import Tokenizer
from perilune.errors import InsufficientBalance, LimitReached
from perilune.model.tiny import write_byte_tokenizer
from perilune.settings import Settings

INPUT, OUTPUT = 950, 4000
"""Nano-USD a token, of K2.6."""
MONEY = st.one_of(
    st.none(),
    st.integers(0, 3_000_000),
    st.integers(1_000_000, 20_000_000),
    st.builds(lambda prompt, answer, off: prompt * INPUT + answer * OUTPUT + off,
              st.integers(0, 600), st.sampled_from([1, 255, 256, 257, 1024]), st.integers(-1, 1)),
)  # fmt: skip
"""None: no limit."""


@dataclass(frozen=True)
class Case:
    key_budget: int | None
    project_budget: int | None
    cash: int | None
    """None: nobody pays in advance."""
    voucher: int
    context: int
    most_output: int
    text: str
    tools: tuple[Tool, ...]
    counted: int | None
    asked: int | None
    calls: int


CASES = st.builds(
    Case,
    key_budget=MONEY,
    project_budget=MONEY,
    cash=MONEY,
    voucher=st.integers(0, 2_000_000),
    context=st.integers(300, 4000),
    most_output=st.sampled_from([100, 256, 1024, 4000]),
    text=st.text(max_size=300),
    tools=st.sampled_from([(), (Tool(name="f", description="Grüße ☾" * 5),)]),
    counted=st.one_of(st.none(), st.integers(1, 4000)),
    asked=st.one_of(st.none(), st.none(), st.integers(1, 5000)),
    calls=st.integers(1, 4),
)


class Held:
    """Answers with one event, and then nothing: what was reserved stays so."""

    def __init__(self, entry: ModelEntry, counted: int | None) -> None:
        self._entry = entry
        self._counted = counted
        self.requests: list[Request] = []

    async def models(self) -> tuple[ModelEntry, ...]:
        return (self._entry,)

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        self.requests.append(request)
        yield TextDelta("x")
        await asyncio.Event().wait()

    async def count_tokens(self, request: Request) -> int | None:
        return self._counted

    async def ready(self) -> None: ...

    async def close(self) -> None: ...


class Expected:
    """The rule of docs/accounts.md, said once more and by search instead of division."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.reserved = self.let_in = 0
        size = len(case.text.encode()) + sum(len(tool.description.encode()) for tool in case.tools)
        if case.counted is not None:
            self.least_bound = self.most_bound = case.counted
        else:
            self.least_bound = min(size + MARKER_TOKENS * (1 + len(case.tools)), case.context)
            self.most_bound = case.context

    def free(self) -> int:
        """Of the tightest."""
        case = self.case
        limits = [one for one in (case.key_budget, case.project_budget) if one is not None]
        if case.cash is not None:
            limits.append(case.cash + case.voucher)
        return min(limits, default=1 << 60) - self.reserved

    def refusal(self, amount: int) -> type[Exception]:
        key = self.case.key_budget
        return LimitReached if key is not None and self.reserved + amount > key else InsufficientBalance

    def longest(self, bound: int, estimate: int) -> tuple[int, bool]:
        """The answer's most tokens, and whether the call is let in."""
        case = self.case
        if case.asked is not None:
            known = estimate if case.counted is not None else 0
            length = max(1, min(case.asked, case.context - known))
            return length, bound * INPUT + length * OUTPUT <= self.free()
        most = max(1, min(case.most_output, case.context - estimate))
        least = min(LEAST_ANSWER, most)
        fitting = [n for n in range(least, most + 1) if bound * INPUT + n * OUTPUT <= self.free()]
        return (fitting[-1], True) if fitting else (least, False)


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, Accounts]]:
    """Whether organisations pay in advance -> a HOME where they do. Each case has an organisation there."""
    with ExitStack() as opened:
        found = {}
        for prepaid in (False, True):
            home = tmp_path_factory.mktemp("home")
            chosen = Settings.load(home, {"prepaid": prepaid, "activation_usd": 0}, {})
            found[prepaid] = opened.enter_context(Accounts.open(home, chosen))
        yield found
        assert all(accounts.verify() == () for accounts in found.values())


def organisation(accounts: Accounts, case: Case) -> Principal:
    number = accounts.organisations.create(f"o{uuid.uuid4()}", actor="test")
    project = accounts.organisations.projects()[-1].id
    if case.cash:
        accounts.wallets.enter(number, "deposit", case.cash, "paid", actor="test")
    if case.cash is not None and case.voucher:
        accounts.wallets.enter(number, "voucher", case.voucher, "granted", actor="test")
    accounts.organisations.set_project_budget(project, case.project_budget, actor="test")
    return accounts.authenticate(accounts.create_key("k", project_id=project, budget=case.key_budget), "chat")


async def holds(case: Case, accounts: Accounts) -> None:
    entry = msgspec.structs.replace(
        scripted_entry(), context_length=case.context, max_output_tokens=case.most_output
    )
    inner, expected, principal = Held(entry, case.counted), Expected(case), organisation(accounts, case)
    message = Message(role="user", content=case.text)
    request = Request(model="scripted", messages=(message,), tools=case.tools, max_tokens=case.asked)
    metered = MeteredBackend(inner, accounts, principal)
    async with AsyncExitStack() as under_way:
        for _ in range(case.calls):
            quote = await metered.quote(request)
            assert expected.least_bound <= quote.prompt_bound <= expected.most_bound
            assert quote.prompt_estimate <= quote.prompt_bound
            length, let_in = expected.longest(quote.prompt_bound, quote.prompt_estimate)
            amount = quote.prompt_bound * INPUT + length * OUTPUT
            call = await under_way.enter_async_context(aclosing(metered.call(request)))
            if let_in:
                await anext(call)
                assert inner.requests[-1].max_tokens == length
                assert accounts.usage_rows(principal.project_id)[0].reserved == amount
                expected.reserved += amount
                expected.let_in += 1
            else:
                with pytest.raises((LimitReached, InsufficientBalance)) as caught:
                    await anext(call)
                assert type(caught.value) is expected.refusal(amount)
                assert caught.value.http_status == 429
                if "token quota" in str(caught.value):
                    left = (case.cash or 0) + case.voucher - expected.reserved
                    assert caught.value.message == (
                        f"You exceeded your current token quota: <org-{principal.organisation_id}> "
                        f"{left / 1e9:.5f}, please check your account balance"
                    )
            assert len(inner.requests) == len(accounts.usage_rows(principal.project_id)) == expected.let_in
            event("let in" if let_in else "refused")
        state = accounts.organisations.state(principal.organisation_id)
        assert state.reserved == (expected.reserved if case.cash is not None else 0)


TEXT = st.text(max_size=40)
NAMES = st.text("abcdefghij_", min_size=1, max_size=60)
SCHEMAS = st.recursive(
    st.sampled_from([{}, {"type": "string"}, {"type": "integer", "maximum": 9}, {"type": "null"}])
    | st.builds(lambda text: {"type": "string", "description": text}, st.text("a\n☾", max_size=30)),
    lambda inner: (
        st.builds(
            lambda properties, required: {"type": "object", "properties": properties, "required": required},
            st.dictionaries(NAMES, inner, max_size=5),
            st.lists(NAMES, max_size=2),
        )
        | st.builds(lambda items: {"type": "array", "items": items}, inner)
        | st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3))
    ),
    max_leaves=8,
)
PARAMETERS = st.builds(
    lambda inner: {"type": "object", "properties": inner}, st.dictionaries(NAMES, SCHEMAS, max_size=8)
)
TOOLS = st.builds(Tool, name=NAMES, description=TEXT, parameters=PARAMETERS)
CALLS = st.lists(st.builds(ToolCall, id=st.sampled_from("abc"), name=NAMES, arguments=TEXT), max_size=3)


@st.composite
def turns(draw: st.DrawFn) -> list[Message]:
    """A question, and an answer that may think and call tools, with what they gave."""
    calls = tuple(draw(CALLS))
    answer = Message(role="assistant", content=draw(TEXT), reasoning=draw(TEXT), tool_calls=calls)
    given_back = [Message(role="tool", content=draw(TEXT), tool_call_id=call.id) for call in calls]
    return [Message(role="user", content=draw(TEXT)), answer, *given_back]


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The worst of all tokenizers: one token for each byte."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(folder)
    return Tokenizer.load(folder)


def calls_of(name: str, count: int) -> list[Message]:
    """At once, with the shortest of ids."""
    made = tuple(ToolCall("a", name, "") for _ in range(count))
    answer = Message(role="assistant", content="", tool_calls=made)
    return [answer, *[Message(role="tool", content="", tool_call_id="a") for _ in made]]


@settings(max_examples=40, deadline=None)
@given(conversation=st.lists(turns(), max_size=4), tools=st.lists(TOOLS, max_size=3), thinking=st.booleans())
@example(
    conversation=[],
    tools=[Tool(name="f", parameters={"type": "object", "properties": {f"p{n}": {} for n in range(100)}})],
    thinking=True,
)
@example(conversation=[calls_of("f" * 64, 100)], tools=[], thinking=True)
def test_an_uncounted_prompt_is_never_bounded_too_low(
    books: dict[bool, Accounts],
    bytewise: Tokenizer,
    conversation: list[list[Message]],
    tools: list[Tool],
    thinking: bool,
) -> None:
    accounts = books[False]
    entry = msgspec.structs.replace(scripted_entry(), context_length=1 << 20)
    messages = tuple(message for turn in conversation for message in turn)
    request = Request(
        model="scripted",
        messages=(*messages, Message(role="user", content="")),
        tools=tuple(tools),
        thinking=thinking,
        keep_thinking=True,
    )
    metered = MeteredBackend(Held(entry, None), accounts, accounts.local_principal())
    quote = asyncio.run(metered.quote(request))
    assert len(prompt_ids(request, bytewise)) <= quote.prompt_bound


def case(**more: Any) -> Case:
    usual = Case(None, None, None, 0, 4000, 1024, "x", (), counted=100, asked=None, calls=2)
    return replace(usual, **more)


@settings(max_examples=60, deadline=None)
@given(case=CASES)
@example(case=case(key_budget=100 * INPUT + 256 * OUTPUT))
@example(case=case(key_budget=100 * INPUT + 256 * OUTPUT - 1))
@example(case=case(cash=100 * INPUT + 255 * OUTPUT, voucher=OUTPUT))
@example(
    case=case(key_budget=100 * INPUT + 300 * OUTPUT, project_budget=100 * INPUT + 400 * OUTPUT, cash=None)
)
@example(
    case=case(key_budget=100 * INPUT + 400 * OUTPUT, project_budget=100 * INPUT + 300 * OUTPUT, cash=10**9)
)
@example(case=case(key_budget=10**9, cash=100 * INPUT + 300 * OUTPUT + 1, calls=1))
@example(case=case(counted=None, text="word " * 100, context=800))
@example(case=case(counted=700, context=800))
@example(case=case(counted=700, context=800, asked=500))
def test_the_reservation_is_the_rule(books: dict[bool, Accounts], case: Case) -> None:
    asyncio.run(holds(case, books[case.cash is not None]))
