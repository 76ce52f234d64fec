"""`$web_search` where something is missing, fails, or is sent twice; and what it costs then."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from kimi_server import CHAT, K26, OFF, kimi_serving
from test_api_docs import run_python
from test_kimi_checklist_search import ASK, FEE, SEARCH, Searching, echoed, fees, searching

from perilune.accounts.accounts import Accounts
from perilune.api import search_shelf
from perilune.api.search_shelf import SearchShelf
from perilune.api.serve import Server
from perilune.backends.scripted import Call, ScriptedBackend
from perilune.chat.web_search import Kept
from perilune.errors import ConfigError, StoreError
from perilune.settings import Settings

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("stream", [False, True])
async def test_without_a_provider_it_is_refused_and_the_setting_named(tmp_path: Path, stream: bool) -> None:
    for flags in ({}, {"web_search": "off"}, {"web_search": "local"}):
        async with kimi_serving(tmp_path, Searching().backend, **flags) as k26:
            answer = await k26.ask(messages=ASK, tools=[WEATHER, SEARCH], stream=stream)
            said = answer.refused("tools[1]: no web search is set up on this server")
            assert "web_search" in said
            assert k26.api.rows() == []


def test_a_server_does_not_start_with_an_address_that_is_none(tmp_path: Path) -> None:
    for flags in ({"searxng_url": "localhost:8888"}, {"web_search": "searxng"}):
        settings = Settings.load(tmp_path, {"port": 0} | flags, {})
        with Accounts.open(tmp_path, settings) as accounts, pytest.raises(ConfigError, match="searxng_url"):
            Server(settings, Searching().backend, accounts)


async def test_a_search_that_fails_is_told_to_the_model_and_not_charged(tmp_path: Path) -> None:
    model = Searching()
    async with searching(tmp_path, model) as (k26, server):
        server.status = 500
        first = await k26.ask(messages=ASK, tools=[SEARCH])
        assert first.choice["finish_reason"] == "tool_calls"
        assert [row[1:] for row in fees(k26.api)] == [("failed", 0)]
        second = await k26.ask(messages=echoed(first.message), tools=[SEARCH])
        assert "the search server answered 500" in second.message["content"]


async def test_no_search_no_fee(tmp_path: Path) -> None:
    backend = ScriptedBackend(lambda request: "I know that.", entry=K26)
    async with searching(tmp_path) as (_, server):
        async with kimi_serving(tmp_path / "b", backend, searxng_url=server.url) as k26:
            assert (await k26.ask(messages=ASK, tools=[SEARCH])).message["content"] == "I know that."
            assert (await k26.ask(messages=ASK, tools=[SEARCH], stream=True)).chunks
            assert fees(k26.api) == [] and k26.api.rows() == ["finished"] * 2


@pytest.mark.parametrize("choice", ["none", {"type": "function", "function": {"name": "$web_search"}}])
async def test_tool_choice(tmp_path: Path, choice: Any) -> None:
    model = Searching()
    model.backend = ScriptedBackend(
        lambda request: "no" if request.tool_choice == "none" else Call("web_search", {"query": "q"}),
        entry=K26,
    )
    async with searching(tmp_path, model) as (k26, _):
        answer = await k26.ask(messages=ASK, tools=[SEARCH], tool_choice=choice, thinking=OFF)
        assert answer.choice["finish_reason"] == ("stop" if choice == "none" else "tool_calls")
        assert len(fees(k26.api)) == (0 if choice == "none" else 1)


async def test_each_search_of_an_answer_costs_and_each_has_its_results(tmp_path: Path) -> None:
    model = Searching("one", "two")
    async with searching(tmp_path, model) as (k26, server):
        first = await k26.ask(messages=ASK, tools=[WEATHER, SEARCH])
        assert server.queries == ["one", "two"]
        assert [row[1:] for row in fees(k26.api)] == [("finished", FEE)] * 2
        await k26.ask(messages=echoed(first.message), tools=[WEATHER, SEARCH])
        results = [json.loads(str(one.content)) for one in model.asked[-1].messages if one.role == "tool"]
        assert [one["query"] for one in results] == ["one", "two"]
        assert "data from outside" in results[0]["note"]


async def test_beside_calls_of_the_clients_own(tmp_path: Path) -> None:
    model = Searching()
    model.backend = ScriptedBackend(
        lambda request: [Call("weather", {}), Call("web_search", {"query": "q"}), Call("weather", {"a": 1})],
        entry=K26,
        chunk=3,
    )
    async with searching(tmp_path, model) as (k26, _):
        for stream in (False, True):
            answer = await k26.ask(messages=ASK, tools=[WEATHER, SEARCH], stream=stream)
            if stream:
                calls = [one for delta in answer.deltas for one in delta.get("tool_calls", ())]
                names = [(one["index"], one["function"]["name"]) for one in calls if "id" in one]
                assert names == [(0, "weather"), (1, "$web_search"), (2, "weather")]
            else:
                names = [one["function"]["name"] for one in answer.message["tool_calls"]]
                assert names == ["weather", "$web_search", "weather"]
                assert json.loads(answer.message["tool_calls"][2]["function"]["arguments"]) == {"a": 1}


LONG = tuple(
    {"url": f"https://moon.example/{n}", "title": f"Page {n}", "content": f"{n} " + "perilune " * 160}
    for n in range(8)
)


async def test_results_leave_a_small_context_room_for_the_answer(tmp_path: Path) -> None:
    model = Searching("one", "two")
    entry = msgspec.structs.replace(K26, context_length=2048, max_output_tokens=256)
    model.backend = ScriptedBackend(model._reply, entry=entry)
    async with searching(tmp_path, model) as (k26, server):
        server.results = LONG
        first = await k26.ask(messages=ASK, tools=[SEARCH])
        calls = [json.loads(one["function"]["arguments"]) for one in first.message["tool_calls"]]
        one, two = (call["usage"]["total_tokens"] for call in calls)
        assert one <= 1024 and two <= (2048 - one) // 2 and one > two > 0
        assert [row[1:] for row in fees(k26.api)] == [("finished", FEE)] * 2
        second = await k26.ask(messages=echoed(first.message), tools=[SEARCH])
        assert second.choice["finish_reason"] == "stop"
        shown = [json.loads(str(one.content)) for one in model.asked[-1].messages if one.role == "tool"]
        assert [hit["title"] for hit in shown[0]["results"]] == [f"Page {n}" for n in range(2)]
        assert [hit["title"] for hit in shown[1]["results"]] == ["Page 0"]


async def test_results_for_which_there_is_no_room_cost_nothing(tmp_path: Path) -> None:
    model = Searching()
    entry = msgspec.structs.replace(K26, context_length=220, max_output_tokens=16)
    model.backend = ScriptedBackend(model._reply, entry=entry)
    async with searching(tmp_path, model) as (k26, server):
        server.results = LONG
        first = await k26.ask(messages=ASK, tools=[SEARCH])
        assert fees(k26.api) == [(fees(k26.api)[0][0], "failed", 0)]
        await k26.ask(messages=echoed(first.message), tools=[SEARCH])
        assert "no room" in str(model.asked[-1].messages[-1].content)


async def test_a_call_without_a_query_is_told_so(tmp_path: Path) -> None:
    model = Searching()
    model.backend = ScriptedBackend(lambda request: Call("web_search", {"words": "q"}), entry=K26)
    async with searching(tmp_path, model) as (k26, server):
        first = await k26.ask(messages=ASK, tools=[SEARCH])
        assert json.loads(first.message["tool_calls"][0]["function"]["arguments"])["query"] == ""
        assert fees(k26.api) == [] and server.queries == []


async def test_who_cannot_pay_is_refused_as_for_any_call(tmp_path: Path) -> None:
    """The model is free here, so that the fee alone decides."""
    model = Searching("one", "two")
    model.backend = ScriptedBackend(model._reply, entry=K26_FREE)
    async with searching(tmp_path, model, prepaid=True, activation_usd=0) as (k26, server):
        for stream in (False, True):
            answer = await k26.ask(messages=ASK, tools=[SEARCH], stream=stream)
            answer.refused("exceeded your current token quota", 429, "exceeded_current_quota_error")
            assert answer.headers["x-should-retry"] == "false"
        assert (await k26.ask(messages=ASK)).status == 200 and server.queries == []
        k26.api.accounts.wallets.enter(1, "deposit", FEE + 1, "paid", actor="test")
        first = await k26.ask(messages=ASK, tools=[SEARCH])
        assert [row[1:] for row in fees(k26.api)] == [("finished", FEE)]
        assert server.queries == ["one"]  # the balance does not cover the second
        assert k26.api.accounts.organisations.state(1).available == 1
        # What was paid for is read at no further fee, though nothing is left for another.
        answer = await k26.ask(messages=echoed(first.message))
        assert "does not cover another search" in answer.message["content"]


K26_FREE = msgspec.structs.replace(K26, price="free")


async def test_results_belong_to_a_project(tmp_path: Path) -> None:
    model = Searching()
    async with searching(tmp_path, model) as (k26, _):
        first = await k26.ask(messages=ASK, tools=[SEARCH])
        accounts = k26.api.accounts
        project = accounts.organisations.create_project(1, "other", None, actor="test")
        stranger = accounts.create_key("other", project_id=project)
        messages = echoed(first.message)
        mine = await k26.ask(messages=messages)
        theirs = await k26.ask(messages=messages, auth=f"Bearer {stranger}")
        assert "nearest to the Moon" in mine.message["content"]
        assert "not kept any more" in theirs.message["content"]


async def test_results_outlive_the_server(tmp_path: Path) -> None:
    async with searching(tmp_path) as (k26, _):
        first = await k26.ask(messages=ASK, tools=[SEARCH])
    async with kimi_serving(tmp_path, Searching().backend) as k26:  # no provider any more
        assert "nearest to the Moon" in (await k26.ask(messages=echoed(first.message))).message["content"]


async def test_the_estimate_counts_what_the_call_would(tmp_path: Path) -> None:
    async with searching(tmp_path) as (k26, _):
        first = await k26.ask(messages=ASK, tools=[SEARCH])
        for messages in (ASK, echoed(first.message)):
            estimate = await k26.ask("/v1/tokenizers/estimate-token-count", messages=messages, tools=[SEARCH])
            said = await k26.ask(messages=messages, tools=[SEARCH])
            assert estimate.body["data"]["total_tokens"] == said.usage["prompt_tokens"]


async def test_a_client_that_leaves_during_the_search_pays_no_fee(tmp_path: Path) -> None:
    async with searching(tmp_path) as (k26, server):
        server.delay = 30.0
        body = json.dumps({"model": "kimi-k2.6", "messages": ASK, "tools": [SEARCH]})
        headers = k26.api.auth | {"Content-Type": "application/json"}
        async with aiohttp.ClientSession() as web:
            asking = asyncio.create_task(web.post(k26.api.root + CHAT, data=body, headers=headers))
            await asyncio.wait_for(server.reached.wait(), 10)
            asking.cancel()
            await asyncio.wait({asking})
        for _ in range(200):
            if k26.api.rows() and "open" not in k26.api.rows():
                break
            await asyncio.sleep(0.02)
        assert fees(k26.api) == [] and len(k26.api.rows()) == 1


async def test_the_snippet_of_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "web-search.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    async with searching(tmp_path) as (k26, server):
        code = code.replace("http://127.0.0.1:8642/v1", k26.api.url).replace("plk_...", k26.api.key)
        said = await asyncio.to_thread(run_python, code.replace("perilune-nano", "kimi-k2.6"))
        assert "nearest to the Moon" in said and len(server.queries) == 1


def test_the_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, kept = SearchShelf(tmp_path / "searches"), Kept("q", "{}", "text", 3)
    old, new = "01" + "0" * 24, "01KBF" + "0" * 21
    today = search_shelf._day_of(old)
    monkeypatch.setattr(search_shelf.time, "time", lambda: today * 86400.0)
    shelf.add(1, old, kept)
    shelf.add(1, new, kept)
    assert shelf.find(1, [old, new, "Z" * 26, "../../keys", ""]) == {old: kept, new: kept}
    assert shelf.find(2, [old]) == {}
    assert SearchShelf(tmp_path / "searches").find(1, [new]) == {new: kept}
    today = search_shelf._day_of(new) + search_shelf.KEEP_DAYS
    shelf.add(1, new, kept)
    assert shelf.find(1, [old, new]) == {new: kept}
    (tmp_path / "searches" / "1" / str(search_shelf._day_of(new)) / f"{new}.json").write_text("{")
    with pytest.raises(StoreError):
        shelf.find(1, [new])
