"""The numbered checklist of the Kimi API: streams, tools and money. Tests bear its numbers."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from api_server import Endless, Mute
from kimi_server import CHAT, HI, K26, OFF, WEATHER, Answer, Kimi, kimi, kimi_serving

from perilune.backends.base import ModelEntry
from perilune.backends.scripted import ScriptedBackend
from perilune.chat.messages import Request

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKED: list[Any] = [{"role": "user", "content": "How is the weather in Riga?"}]
BOTH: list[Any] = [{"role": "user", "content": "How is the weather in Riga and Oslo?"}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
USD = 1_000_000_000
STRICT = msgspec.structs.replace(K26, schema_policy="strict")


class K26Mute(Mute):
    async def models(self) -> tuple[ModelEntry, ...]:
        return (K26,)


class K26Endless(Endless):
    async def models(self) -> tuple[ModelEntry, ...]:
        return (K26,)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def k26(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kimi]:
    async with kimi_serving(tmp_path_factory.mktemp("kimi")) as kimi:
        yield kimi


# ---- streams


async def test_030_server_sent_events(k26: Kimi) -> None:
    answer = await k26.ask(stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert {chunk["object"] for chunk in answer.chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in answer.chunks}) == 1


async def test_031_the_role_comes_first_and_once(k26: Kimi) -> None:
    first, *later = (await k26.ask(stream=True)).deltas
    assert first == {"role": "assistant", "content": ""}
    assert later and not any("role" in delta for delta in later)


async def test_032_thinking_before_content(k26: Kimi) -> None:
    kinds = [next(iter(delta)) for delta in (await k26.ask(stream=True)).deltas[1:-1]]
    assert kinds == sorted(kinds, reverse=True) and set(kinds) == {"reasoning_content", "content"}


async def test_033_the_closing_chunk(k26: Kimi) -> None:
    (closing,) = (await k26.ask(stream=True)).chunks[-1]["choices"]
    assert closing["delta"] == {} and closing["finish_reason"] == "stop"
    assert closing["usage"] == (await k26.ask()).usage


async def test_034_usage_on_request(k26: Kimi) -> None:
    plain = (await k26.ask(stream=True)).chunks
    chunks = (await k26.ask(stream=True, stream_options={"include_usage": True})).chunks
    assert len(chunks) == len(plain) + 1 and all(chunk["choices"] for chunk in plain)
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * len(plain)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == chunks[-2]["choices"][0]["usage"]


# ---- tools


async def test_039_a_call_that_fits_its_schema(k26: Kimi) -> None:
    answer = await k26.ask(messages=ASKED, tools=[WEATHER])
    assert answer.choice["finish_reason"] == "tool_calls"
    (call,) = answer.message["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "get_weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Riga"}


async def test_040_a_call_in_pieces(k26: Kimi) -> None:
    first, *later = called(await k26.ask(messages=ASKED, tools=[WEATHER], stream=True))
    assert (first["index"], first["type"], first["function"]["name"]) == (0, "function", "get_weather")
    assert first["id"] and len(later) > 1
    assert all(
        set(piece) == {"index", "function"} and set(piece["function"]) == {"arguments"} for piece in later
    )
    assert json.loads("".join(piece["function"]["arguments"] for piece in later)) == {"city": "Riga"}


async def test_041_two_calls_one_after_the_other(k26: Kimi) -> None:
    pieces = called(await k26.ask(messages=BOTH, tools=[WEATHER], stream=True))
    indices = [piece["index"] for piece in pieces]
    assert indices == sorted(indices) and set(indices) == {0, 1}
    ids = [piece["id"] for piece in pieces if "id" in piece]
    assert len(ids) == len(set(ids)) == 2


async def test_042_a_call_without_its_answer(k26: Kimi) -> None:
    history = loop("get_weather:0", "get_weather:1")
    for lacking in (history[:-1], [*history[:-1], *HI]):
        told = (await k26.ask(messages=lacking, tools=[WEATHER])).refused(
            "Invalid request: an assistant message with 'tool_calls' must be followed by tool messages "
            "responding to each 'tool_call_id'. "
            "The following tool_call_ids did not have response messages: get_weather:1"
        )
        assert "get_weather:0" not in told


async def test_043_the_whole_loop(k26: Kimi) -> None:
    asked = (await k26.ask(messages=BOTH, tools=[WEATHER])).message
    told = [{"role": "tool", "tool_call_id": call["id"], "content": "dry"} for call in asked["tool_calls"]]
    asked |= {"reasoning_content": "Two places."}
    answer = await k26.ask(messages=[*BOTH, asked, *told], tools=[WEATHER])
    assert answer.choice["finish_reason"] == "stop" and answer.message["content"]


async def test_044_a_loop_without_its_thinking(k26: Kimi) -> None:
    history = loop("a:0")
    del history[1]["reasoning_content"]
    assert (await k26.ask(messages=history, tools=[WEATHER])).choice["finish_reason"] == "stop"


async def test_044_strict_refuses_it(tmp_path: Path) -> None:
    async with kimi_serving(tmp_path, thinking_history="strict") as k26:
        history = loop("a:0")
        for enough in ("Ask.", "", " "):
            history[1]["reasoning_content"] = enough
            assert (await k26.ask(messages=history, tools=[WEATHER])).status == 200
        del history[1]["reasoning_content"]
        (await k26.ask(messages=history, tools=[WEATHER])).refused(
            "thinking is enabled but reasoning_content is missing in assistant tool call message at index 1"
        )
        assert (await k26.ask(messages=history, tools=[WEATHER], thinking=OFF)).status == 200


async def test_045_choice_none(k26: Kimi) -> None:
    answer = await k26.ask(messages=ASKED, tools=[WEATHER], tool_choice="none")
    assert answer.choice["finish_reason"] == "stop" and "tool_calls" not in answer.message


async def test_046_required_while_thinking(k26: Kimi) -> None:
    words = "tool_choice 'required' is incompatible with thinking enabled"
    (await k26.ask(tools=[WEATHER], tool_choice="required")).refused(words)


async def test_047_a_named_function_while_thinking(k26: Kimi) -> None:
    words = "tool_choice 'specified' is incompatible with thinking enabled"
    (await k26.ask(tools=[WEATHER], tool_choice=NAMED)).refused(words)


async def test_048_required_without_thinking(k26: Kimi) -> None:
    for choice in ("required", NAMED):
        answer = await k26.ask(tools=[WEATHER], tool_choice=choice, thinking=OFF)
        assert answer.choice["finish_reason"] == "tool_calls"


async def test_049_choices_that_cannot_be(k26: Kimi) -> None:
    for tools in ({}, {"tools": []}):
        (await k26.ask(tool_choice="required", thinking=OFF, **tools)).refused("tool_choice")
        assert (await k26.ask(tool_choice="auto", **tools)).message["content"]
    (await k26.ask(tools=[WEATHER], tool_choice="bogus", thinking=OFF)).refused("unknown choice 'bogus'")


async def test_050_a_type_beside_any_of(tmp_path: Path) -> None:
    city = {"type": "string", "anyOf": [{"minLength": 3}, {"pattern": "^R"}]}
    schema = {"type": "object", "properties": {"city": city}}
    tools = [WEATHER, WEATHER | {"function": {"name": "look", "parameters": schema}}]
    document = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    async with kimi_serving(tmp_path, kimi(STRICT)) as k26:
        told = (await k26.ask(tools=tools)).refused("not a valid moonshot flavored json schema")
        assert told.startswith("tools[1].function.parameters: Invalid request: tools.function.parameters is ")
        assert (
            "details: <At path 'properties.city': when using anyOf, type should be defined in anyOf" in told
        )
        told = (await k26.ask(response_format=document, stream=True)).refused("flavored json schema")
        assert told.startswith("response_format.json_schema.schema: ") and "'properties.city'" in told
        loose = [WEATHER | {"function": {"name": "look", "parameters": schema, "strict": False}}]
        assert (await k26.ask(tools=loose)).status == 200
        assert (await k26.ask(tools=[WEATHER])).status == 200


async def test_050_repaired_before_anything_sees_it(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Riga"]}}, "required": ["city"]}
    seen: list[Request] = []

    def note(request: Request) -> str:
        seen.append(request)
        return "Noted."

    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    tools = [WEATHER | {"function": {"name": "look", "parameters": schema}}]
    async with kimi_serving(tmp_path, ScriptedBackend(note, entry=K26)) as k26:
        for _ in range(2):
            assert (await k26.ask(tools=tools, response_format=form)).status == 200
    repaired = schema | {"properties": {"city": {"enum": ["Riga"], "type": "string"}}}
    assert [request.tools[0].parameters for request in seen] == [repaired] * 2
    assert [request.json_schema for request in seen] == [repaired] * 2


async def test_051_schemas_with_words_that_are_not_enforced(tmp_path: Path) -> None:
    when = {"type": "string", "format": "date", "oneOf": [{"minLength": 1}, {"maxLength": 9}]}
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}
    function = {"name": "look", "parameters": schema | {"properties": {"when": when}}}
    for policy in (K26, STRICT):
        async with kimi_serving(tmp_path / policy.schema_policy, kimi(policy)) as k26:
            answer = await k26.ask(messages=ASKED, tools=[{"type": "function", "function": function}])
            assert answer.choice["finish_reason"] == "tool_calls"


# ---- money and limits


async def test_064_the_balance(k26: Kimi) -> None:
    body = (await k26.get("/v1/users/me/balance")).body
    assert (body["code"], body["scode"], body["status"]) == (0, "0x0", True)
    assert set(body["data"]) == {"available_balance", "voucher_balance", "cash_balance"}
    assert all(isinstance(value, float) for value in body["data"].values())


async def test_064_what_was_paid_and_granted(tmp_path: Path) -> None:
    """Five decimals; available are both, and the voucher alone where cash is below zero."""
    async with kimi_serving(tmp_path, prepaid=True) as k26:
        wallets = k26.api.accounts.wallets
        wallets.enter(1, "deposit", 3_000_019_999, "in", actor="test")
        wallets.enter(1, "voucher", 46_588_930_000, "gift", actor="test")
        for more, cash, available in ((0, 3.00001, 49.58894), (-5 * USD, -1.99999, 46.58893)):
            if more:
                wallets.enter(1, "correction", more, "out", actor="test")
            assert (await k26.get("/v1/users/me/balance")).body["data"] == {
                "available_balance": available,
                "voucher_balance": 46.58893,
                "cash_balance": cash,
            }


async def test_065_nothing_left(tmp_path: Path) -> None:
    async with kimi_serving(tmp_path, prepaid=True) as k26:
        (await k26.ask()).refused(status=429, kind="exceeded_current_quota_error")
        k26.api.accounts.wallets.enter(1, "deposit", 2 * USD, "in", actor="test")
        assert (await k26.ask()).status == 200
        k26.api.accounts.wallets.enter(1, "correction", -2 * USD, "out", actor="test")
        (await k26.ask()).refused(status=429, kind="exceeded_current_quota_error")


async def test_066_the_fourth_request_of_a_minute(tmp_path: Path) -> None:
    async with kimi_serving(tmp_path, tier="kimi-0") as k26:
        assert [(await k26.ask()).status for _ in range(3)] == [200] * 3
        answer = await k26.ask()
        limited(answer, "max RPM: 3, please try again after")
        assert 1 <= int(answer.headers["retry-after"]) <= 60


async def test_066_headers_say_how_many_are_left(tmp_path: Path) -> None:
    names = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
    async with kimi_serving(tmp_path, tier="kimi-0") as k26:
        left = []
        for stream in (False, True, False, False):
            answer = await k26.ask(stream=stream)
            limit, remaining, reset = (int(answer.headers[name]) for name in names)
            assert limit == 3 and 0 < reset - time.time() <= 61
            left.append((answer.status, remaining))
        assert left == [(200, 2), (200, 1), (200, 0), (429, 0)]
    async with kimi_serving(tmp_path / "none") as k26:
        assert not set(names) & {name.lower() for name in (await k26.ask()).headers}


async def test_067_the_second_at_once(tmp_path: Path) -> None:
    async with kimi_serving(tmp_path, K26Mute(), tier="kimi-0") as k26:
        first = asyncio.create_task(k26.ask())
        async with asyncio.timeout(10):
            while k26.api.rows() != ["open"]:  # noqa: ASYNC110  it is written by another thread
                await asyncio.sleep(0.01)
        limited(await k26.ask(), "max concurrency: 1")
        first.cancel()


async def test_068_what_is_asked_for_counts(tmp_path: Path) -> None:
    async with kimi_serving(tmp_path, tier="kimi-0") as k26:
        for _ in range(2):
            assert (await k26.ask(max_completion_tokens=240_000)).usage["completion_tokens"] < 20
        answer = await k26.ask(max_completion_tokens=30_000)
        assert re.search(r"TPM rate limit, current:\d+, limit:500000", limited(answer))


async def test_071_a_client_that_leaves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = K26Endless()
    caplog.set_level(logging.INFO, "perilune.api")
    async with kimi_serving(tmp_path, backend) as k26:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await k26.ask(stream=True)
        async with asyncio.timeout(10):
            while not re.search(rf"POST {CHAT} 499", caplog.text):  # noqa: ASYNC110  a log tells nobody
                await asyncio.sleep(0.01)
        assert backend.closed == 1
        assert k26.api.rows() == ["aborted"]
        (row,) = k26.api.accounts.usage_rows()
        assert row.output > 0 and row.estimated


def limited(answer: Answer, words: str = "") -> str:
    return answer.refused(words, status=429, kind="rate_limit_reached_error")


def called(answer: Answer) -> list[Any]:
    return [piece for delta in answer.deltas for piece in delta.get("tool_calls", ())]


def loop(*ids: str) -> list[Any]:
    """A conversation whose tool calls have their answers."""
    function = {"name": "get_weather", "arguments": "{}"}
    calls = [{"id": call_id, "type": "function", "function": function} for call_id in ids]
    asked = {"role": "assistant", "content": "", "tool_calls": calls, "reasoning_content": "Ask."}
    told = [{"role": "tool", "tool_call_id": call_id, "content": "dry"} for call_id in ids]
    return [*ASKED, asked, *told]
