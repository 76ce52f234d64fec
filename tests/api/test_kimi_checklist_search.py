"""The numbered checklist of the Kimi API: web search. Over real sockets, against a server that answers as
SearXNG does and against a real index."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from api_server import Api
from kimi_server import K26, OFF, Kimi, kimi_serving
from openai import AsyncOpenAI
from tests.searxng_server import Searxng, searxng

from perilune.agent.search.indexing import index
from perilune.backends.scripted import Call, Reply, ScriptedBackend, usage_of
from perilune.chat.messages import Completion, Message, Request

FEE = 5_000_000
SEARCH: Any = {"type": "builtin_function", "function": {"name": "$web_search"}}
ASK: list[dict[str, Any]] = [{"role": "user", "content": "What is a perilune?"}]


class Searching:
    """A model that searches once for each `search:` that the user says, then tells what it was shown."""

    def __init__(self, *queries: str) -> None:
        self.queries = queries or ("perilune meaning",)
        self.asked: list[Request] = []
        self.backend = ScriptedBackend(self._reply, entry=K26, chunk=7)

    def _reply(self, request: Request) -> Reply:
        self.asked.append(request)
        last = request.messages[-1]
        if last.role == "user" and any(tool.name == "web_search" for tool in request.tools):
            return [Call("web_search", {"query": query}) for query in self.queries]
        thought = "Let me see." if request.thinking else None
        message = Message(role="assistant", content=f"I read: {last.content}", reasoning=thought)
        return Completion(message=message, finish_reason="stop", usage=usage_of(request, message))


@asynccontextmanager
async def searching(
    home: Path, model: Searching | None = None, **flags: object
) -> AsyncIterator[tuple[Kimi, Searxng]]:
    async with searxng() as server:
        flags = {"searxng_url": server.url} | flags
        async with kimi_serving(home, (model or Searching()).backend, **flags) as kimi:
            yield kimi, server


def fees(api: Api) -> list[tuple[str, str, int]]:
    """(id, outcome, charge) of all searches in the ledger, which must prove itself."""
    assert api.accounts.verify() == ()
    rows = api.accounts.usage_rows()
    return [(row.request_id, row.outcome, row.charge) for row in rows if row.model == "$web_search"]


def echoed(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the hosted API's guide has a client send back."""
    answers = [
        {
            "role": "tool",
            "tool_call_id": call["id"],
            "name": call["function"]["name"],
            "content": call["function"]["arguments"],
        }
        for call in message["tool_calls"]
    ]
    return [*ASK, dict(message), *answers]


@pytest.mark.parametrize("thinking", [{"type": "enabled"}, OFF])
async def test_069_a_web_search(tmp_path: Path, thinking: dict[str, Any]) -> None:
    model = Searching()
    async with searching(tmp_path, model) as (k26, server):
        first = await k26.ask(messages=ASK, tools=[SEARCH], thinking=thinking)
        assert first.choice["finish_reason"] == "tool_calls"
        (call,) = first.message["tool_calls"]
        assert (call["type"], call["function"]["name"]) == ("function", "$web_search")
        arguments = json.loads(call["function"]["arguments"])
        assert arguments["query"] == "perilune meaning" and server.queries == ["perilune meaning"]
        size = arguments["usage"]["total_tokens"]
        assert fees(k26.api) == [(arguments["search_result"]["search_id"], "finished", FEE)]
        second = await k26.ask(messages=echoed(first.message), tools=[SEARCH], thinking=thinking)
        assert second.choice["finish_reason"] == "stop"
        assert "nearest to the Moon" in second.message["content"]
        assert second.usage["prompt_tokens"] > size > 50
        # The same conversation again: the results are those that were paid for.
        third = await k26.ask(messages=echoed(first.message), tools=[SEARCH], thinking=thinking)
        assert third.message == second.message
        assert len(fees(k26.api)) == 1 and len(server.queries) == 1
        assert sorted(k26.api.rows()) == ["finished"] * 4


async def test_069_streamed(tmp_path: Path) -> None:
    async with searching(tmp_path) as (k26, _):
        answer = await k26.ask(messages=ASK, tools=[SEARCH], stream=True)
        calls = [one for delta in answer.deltas for one in delta.get("tool_calls", ())]
        opening, rest = calls[0], calls[1:]
        assert (opening["index"], opening["type"]) == (0, "function")
        assert opening["function"] == {"name": "$web_search", "arguments": ""}
        assert all(set(one) == {"index", "function"} for one in rest)
        arguments = json.loads("".join(one["function"]["arguments"] for one in rest))
        assert arguments["usage"]["total_tokens"] > 0
        assert answer.chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
        assert fees(k26.api) == [(arguments["search_result"]["search_id"], "finished", FEE)]
        call = opening | {"function": {"name": "$web_search", "arguments": json.dumps(arguments)}}
        message = {"role": "assistant", "content": "", "tool_calls": [call]}
        second = await k26.ask(messages=echoed(message), tools=[SEARCH], stream=True)
        said = "".join(delta.get("content") or "" for delta in second.deltas)
        assert "nearest to the Moon" in said and len(fees(k26.api)) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_069_with_the_openai_client_and_the_local_index(tmp_path: Path, stream: bool) -> None:
    home, notes = tmp_path / "home", tmp_path / "notes"
    notes.mkdir()
    (notes / "moon.md").write_text("# Orbits\n\nA perilune is the point nearest to the Moon.\n")
    async with kimi_serving(home, Searching().backend) as k26:
        await index(home / "search.db", [notes])
        async with AsyncOpenAI(base_url=k26.api.url, api_key=k26.api.key, max_retries=0) as ai:
            messages: list[Any] = list(ASK)
            asked: dict[str, Any] = {"model": "kimi-k2.6", "tools": [SEARCH]}
            reason = ""
            while reason != "stop":
                if stream:
                    message, reason = await streamed(ai, messages, asked)
                else:
                    whole = await ai.chat.completions.create(messages=messages, **asked)
                    message, reason = whole.choices[0].message.model_dump(), whole.choices[0].finish_reason
                messages.append(message)
                for call in message.get("tool_calls") or ():
                    given = json.loads(call["function"]["arguments"])  # as the vendor's example does
                    messages.append(
                        {
                            "role": "tool",
                            "tool_call_id": call["id"],
                            "name": call["function"]["name"],
                            "content": json.dumps(given),
                        }
                    )
        assert "notes/moon.md" in messages[-1]["content"] and len(messages) == 4
        assert [charge for _, _, charge in fees(k26.api)] == [FEE]


async def streamed(ai: AsyncOpenAI, messages: list[Any], asked: dict[str, Any]) -> tuple[dict[str, Any], str]:
    async with ai.chat.completions.stream(messages=messages, **asked) as stream:
        async for _ in stream:
            await asyncio.sleep(0)
        choice = (await stream.get_final_completion()).choices[0]
    return choice.message.model_dump(), choice.finish_reason
