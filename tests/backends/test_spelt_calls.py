"""Calls that an endpoint leaves in the text of its answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import get_args

import pytest

from perilune.backends.dialects import ENGINES
from perilune.backends.fleet import Engine
from perilune.backends.spelt_calls import read_spelt_calls
from perilune.chat.messages import (
    Assembler,
    Completion,
    Event,
    Finished,
    FinishReason,
    Message,
    Request,
    TextDelta,
    Tool,
    ToolCall,
    Usage,
)

TOOLS = (Tool(name="search"), Tool(name="weather"))
ASKED = Request(model="m", messages=(Message(role="user", content="Hi"),), tools=TOOLS)
CALL = '<|tool_call_begin|>functions.search:0<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|>'
OTHER = "<|tool_call_begin|>functions.weather:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
SECTION = f"Let me look.<|tool_calls_section_begin|>{CALL}{OTHER}<|tool_calls_section_end|>"


async def answer(
    text: str, pieces: int, reason: FinishReason = "stop", request: Request = ASKED
) -> Completion:
    async def arriving() -> AsyncGenerator[Event, None]:
        for at in range(0, len(text), pieces):
            yield TextDelta(text[at : at + pieces])
        yield Finished(reason, Usage(completion_tokens=9))

    seen = Assembler()
    async for event in read_spelt_calls(arriving(), request):
        seen.add(event)
    return seen.completion()


@pytest.mark.parametrize("pieces", [1, 2, 7, 1000])
async def test_calls_are_read_however_the_text_is_cut(pieces: int) -> None:
    found = await answer(SECTION, pieces)
    assert found.message.content == "Let me look."
    assert found.message.tool_calls == (
        ToolCall("functions.search:0", "search", '{"a": 1}'),
        ToolCall("functions.weather:1", "weather", "{}"),
    )
    assert (found.finish_reason, found.usage.completion_tokens) == ("tool_calls", 9)


async def test_calls_count_on_from_the_conversation() -> None:
    before = Message(
        role="assistant", content="", tool_calls=(ToolCall("functions.search:0", "search", "{}"),)
    )
    result = Message(role="tool", content="none", tool_call_id="functions.search:0")
    later = Request(model="m", messages=(*ASKED.messages, before, result), tools=TOOLS)
    found = await answer(SECTION, 5, request=later)
    assert [call.id for call in found.message.tool_calls] == ["functions.search:1", "functions.weather:2"]


async def test_plain_text_and_a_call_that_was_cut_off_keep_their_reason() -> None:
    plain = await answer("1 < 2 and <b>", 3)
    assert (plain.message.content, plain.finish_reason) == ("1 < 2 and <b>", "stop")
    cut = await answer(SECTION[: SECTION.index("1}")], 4, "length")
    assert (len(cut.message.tool_calls), cut.finish_reason) == (1, "length")
    whole = await answer(SECTION[: SECTION.index("<|tool_call_begin|>functions.weather")], 4, "length")
    assert (len(whole.message.tool_calls), whole.finish_reason) == (1, "length")
    unclosed = await answer(SECTION[: SECTION.index("<|tool_call_end|>")], 4)
    assert (len(unclosed.message.tool_calls), unclosed.finish_reason) == (1, "tool_calls")


async def test_leaving_the_answer_closes_the_endpoints() -> None:
    closed = []

    async def endless() -> AsyncGenerator[Event, None]:
        try:
            while True:
                yield TextDelta("on ")
        finally:
            closed.append(True)

    async with aclosing(read_spelt_calls(endless(), ASKED)) as events:
        await anext(events)
    assert closed == [True]


def test_only_llama_cpp_is_known_for_it() -> None:
    assert [name for name, quirks in ENGINES.items() if quirks.calls_in_text] == ["llama-cpp"]


def test_every_dialect_can_be_named_in_a_table() -> None:
    assert set(get_args(Engine)) == {*ENGINES, "embedded"}
