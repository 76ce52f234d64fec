"""Events that came together stay together, in order, and whoever stops early closes what is below."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from loopback import STREAM_HEAD, Endpoint, chunk, raw

from perilune.accounts.accounts import Accounts
from perilune.backends.base import ModelEntry
from perilune.backends.bursts import Bursts, alone, bursts_of, each
from perilune.backends.metered import MeteredBackend
from perilune.backends.scripted import ScriptedBackend
from perilune.backends.upstream import UpstreamBackend
from perilune.chat.messages import Event, Finished, Message, Request, TextDelta, Usage
from perilune.errors import BackendError
from perilune.settings import Settings

ENTRY = ModelEntry(id="m", backend="upstream", context_length=1000, max_output_tokens=100)
ASK = Request(model="m", messages=(Message(role="user", content="Hi"),))
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
TEXTS = chunk(delta={"content": "a"}) + chunk(delta={"content": "b"})
END = chunk(delta={}, finish_reason="stop", usage=USAGE) + b"data: [DONE]\n\n"
FINISHED = Finished("stop", Usage(prompt_tokens=9, completion_tokens=2))


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    with Accounts.open(tmp_path, Settings(home=tmp_path)) as opened:
        yield opened


async def bursts_from(*data: bytes) -> list[list[Event]]:
    """The bursts of an endpoint that sends all of it at once."""
    async with Endpoint([raw(STREAM_HEAD + b"".join(data))]) as endpoint:
        backend = UpstreamBackend(endpoint.url, entry=ENTRY, retries=0)
        found: list[list[Event]] = []
        try:
            async with aclosing(bursts_of(backend, ASK)) as bursts:
                found += [list(burst) async for burst in bursts]
        finally:
            await backend.close()
        return found


async def test_what_an_endpoint_sends_at_once_is_one_burst() -> None:
    role = chunk(delta={"role": "assistant", "content": ""})
    assert await bursts_from(role, TEXTS, END) == [[TextDelta("a"), TextDelta("b"), FINISHED]]


async def test_what_came_before_a_failure_comes_before_it() -> None:
    failed = b'data: {"error": {"message": "out of memory"}}\n\n'
    async with Endpoint([raw(STREAM_HEAD + TEXTS + failed)]) as endpoint:
        backend = UpstreamBackend(endpoint.url, entry=ENTRY, retries=0)
        seen: list[Event] = []
        with pytest.raises(BackendError, match="out of memory"):
            async for burst in backend.bursts(ASK):
                seen += burst
        assert seen == [TextDelta("a"), TextDelta("b")]
        await backend.close()


async def test_a_cut_answer_gives_what_had_come() -> None:
    with pytest.raises(BackendError, match="ended before it was complete"):
        await bursts_from(TEXTS)


async def test_a_call_settles_before_its_end_leaves(accounts: Accounts) -> None:
    """The text that came with it does not wait for that."""
    async with Endpoint([raw(STREAM_HEAD + TEXTS + END)]) as endpoint:
        backend = UpstreamBackend(endpoint.url, entry=ENTRY, retries=0)
        call = MeteredBackend(backend, accounts, accounts.local_principal()).call(ASK)
        bursts = [(list(burst), call.charge is not None) async for burst in call.bursts]
        assert bursts == [([TextDelta("a"), TextDelta("b")], False), ([FINISHED], True)]
        await backend.close()


async def test_a_call_that_is_closed_before_it_began_costs_nothing(accounts: Accounts) -> None:
    backend = ScriptedBackend(lambda request: "never asked")
    call = MeteredBackend(backend, accounts, accounts.local_principal()).call(ASK)
    await call.aclose()
    assert accounts.usage_rows() == []
    assert [event async for event in call] == []


class Closing:
    """A backend that only streams, and notes when its stream is closed."""

    def __init__(self) -> None:
        self.closed = False

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        try:
            for text in "abc":
                yield TextDelta(text)
        finally:
            self.closed = True


async def test_a_backend_that_only_streams_gives_each_event_alone() -> None:
    backend = Closing()
    bursts: Bursts = bursts_of(backend, ASK)  # type: ignore[arg-type]
    assert [list(burst) async for burst in bursts] == [[TextDelta(text)] for text in "abc"]
    assert backend.closed


@pytest.mark.parametrize("layers", [1, 2])
async def test_closing_goes_all_the_way_down(layers: int) -> None:
    backend = Closing()
    bursts = alone(backend.stream(ASK))
    for _ in range(layers - 1):
        bursts = alone(each(bursts))
    events = each(bursts)
    assert await anext(events) == TextDelta("a")
    assert not backend.closed
    await events.aclose()
    assert backend.closed
