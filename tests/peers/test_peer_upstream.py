"""Real servers of vLLM and llama.cpp with nano behind `perilune serve`: what clients see and are charged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from nano.evaluate import orchestration
from peer_engines import RENAMES, rename_requests
from peer_servers import CONTEXT, LAUNCHES, MODEL, MODEL_THERE, Peer, peer

from perilune.agent.solo import run_agent
from perilune.agent.workspace import DirectoryWorkspace
from perilune.backends.base import ModelEntry, complete
from perilune.backends.dialects import ENGINES
from perilune.backends.embedded import EmbeddedBackend
from perilune.backends.upstream import UpstreamBackend
from perilune.chat.messages import Message, Request
from perilune.chat.wire import encode_request
from perilune.errors import ContextTooLong
from perilune.settings import Settings

pytestmark = [pytest.mark.peers, pytest.mark.asyncio(loop_scope="module")]

ENTRY = ModelEntry(id=MODEL, backend="upstream", context_length=CONTEXT, max_output_tokens=CONTEXT)
TALK = "Once there was a name."
LONG = 3500
"""Nano's answer to it has no end, once the schema keeps it from calling tools that were not offered."""
NAMES = {
    "type": "object",
    "properties": {"old": {"type": "string"}, "line": {"type": "integer"}},
    "required": ["old", "line"],
    "additionalProperties": False,
}
SHORT = NAMES | {"properties": {"old": {"enum": ["total", "amount"]}, "line": {"enum": [1, 2]}}}


def in_form_of(schema: dict[str, Any]) -> dict[str, Any]:
    named = {"name": "answer", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": named}


class Client:
    """One that speaks to the Perilune server in front of an engine."""

    def __init__(self, served: Peer, web: aiohttp.ClientSession) -> None:
        self.peer = served
        self._web = web
        self._auth = {"Authorization": f"Bearer {served.key}"}

    async def whole(self, **body: Any) -> dict[str, Any]:
        async with self._post(body) as answer:
            told: dict[str, Any] = await answer.json()
            assert answer.status == 200, told
            return told

    async def chunks(self, **body: Any) -> AsyncIterator[dict[str, Any]]:
        """Of a stream, up to its [DONE]."""
        options = {"stream": True, "stream_options": {"include_usage": True}}
        async with self._post(body | options) as answer:
            assert answer.status == 200, await answer.text()
            async for line in answer.content:
                if line.startswith(b"data: "):
                    data = line.removeprefix(b"data: ").strip()
                    if data == b"[DONE]":
                        return
                    yield json.loads(data)
        raise AssertionError("the stream has no [DONE]")

    def _post(self, body: dict[str, Any]) -> Any:
        return self._web.post(f"{self.peer.api}/chat/completions", json=body, headers=self._auth)

    async def calls(self, settled: int = 0) -> list[dict[str, Any]]:
        """Rows of the ledger, newest first, once none is open and there are so many."""
        async with asyncio.timeout(20):
            while True:
                rows: list[dict[str, Any]] = await self.door("ledger/calls")
                if len(rows) >= settled and all(row["outcome"] != "open" for row in rows):
                    return rows
                await asyncio.sleep(0.05)

    async def door(self, act: str) -> Any:
        keys = json.loads((self.peer.home / "keys.json").read_text())
        auth = {"Authorization": f"Bearer {keys['admin_key']}"}
        async with self._web.get(f"{self.peer.admin}/{act}", headers=auth) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def metric(self, name: str) -> float:
        """Sum of a counter or gauge of the engine's own."""
        async with self._web.get(f"{self.peer.root}/metrics") as answer:
            text = await answer.text()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=tuple(LAUNCHES))
async def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Client]:
    async with peer(request.param, tmp_path_factory.mktemp("peer")) as served, aiohttp.ClientSession() as web:
        yield Client(served, web)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ours(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedBackend]:
    backend = await EmbeddedBackend.start(Settings(home=tmp_path_factory.mktemp("ours"), threads=1))
    yield backend
    await backend.close()


def upstream(url: str, **options: Any) -> UpstreamBackend:
    return UpstreamBackend(url, entry=ENTRY, timeout_s=120.0, retries=0, **options)


def saying(text: str, **options: Any) -> dict[str, Any]:
    options = {"max_tokens": 60, "temperature": 0.0, "thinking": {"type": "disabled"}} | options
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **options}


def request_of(text: str) -> Request:
    return Request(
        model=MODEL,
        messages=(Message(role="user", content=text),),
        thinking=False,
        temperature=0.0,
        max_tokens=40,
        json_schema={},
    )


def charge_of(usage: dict[str, Any]) -> int:
    """Nano-USD at K2.6's prices, which hold where a table names none."""
    cached = usage["cached_tokens"]
    return (usage["prompt_tokens"] - cached) * 950 + cached * 160 + usage["completion_tokens"] * 4000


# ---- answers


async def test_every_call_of_a_rename_is_answered_as_our_engine_answers_it(
    client: Client, ours: EmbeddedBackend, tmp_path: Path
) -> None:
    """Tools, streamed through two servers: ids, names, arguments, text and the counted prompt."""
    there = upstream(client.peer.api, key=client.peer.key)
    try:
        for request in await rename_requests(tmp_path):
            asked = msgspec.structs.replace(request, model=MODEL, argument_choices={})
            theirs, mine = await complete(there, asked), await complete(ours, asked)
            assert theirs.message == mine.message
            assert theirs.finish_reason == mine.finish_reason
            assert theirs.usage.prompt_tokens == mine.usage.prompt_tokens
    finally:
        await there.close()


async def test_agents_do_their_work_through_it(client: Client, tmp_path: Path) -> None:
    there = upstream(client.peer.api, key=client.peer.key)
    try:
        for number, (old, new, path, text) in enumerate(RENAMES[:2]):
            file = tmp_path / str(number) / path
            file.parent.mkdir(parents=True)
            file.write_text(text)
            workspace = DirectoryWorkspace(tmp_path / str(number))
            result = await run_agent(there, "rename", f"Rename {old} to {new}.", path, workspace, model=MODEL)
            assert result.status == "succeeded", result
            assert file.read_text() == text.replace(old, new)
        run = await orchestration(there, ["shop/cart.py", "shop/till.py"], "Rename total to amount in shop.")
        assert (run["done"], run["clause_right"], run["wrong_calls"]) == (2, True, 0)
    finally:
        await there.close()


async def test_a_stream_comes_in_pieces_and_its_usage_at_the_end(client: Client) -> None:
    asked = saying(TALK, response_format=in_form_of(NAMES))
    whole = await client.whole(**asked)
    async with aclosing(client.chunks(**asked)) as stream:
        chunks = [chunk async for chunk in stream]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert (
        "".join(delta.get("content") or "" for delta in deltas) == whole["choices"][0]["message"]["content"]
    )
    assert len([delta for delta in deltas if delta.get("content")]) > 10
    ends = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert ends[-1] == whole["choices"][0]["finish_reason"] and not any(ends[:-1])
    assert [chunk for chunk in chunks if chunk.get("usage")] == chunks[-1:]
    counted = ("prompt_tokens", "completion_tokens")
    assert [chunks[-1]["usage"][name] for name in counted] == [whole["usage"][name] for name in counted]


async def test_tool_calls_are_read_from_its_stream(client: Client, tmp_path: Path) -> None:
    first, second, *_ = await rename_requests(tmp_path)
    for request, name in ((first, "search"), (second, "replace_word")):
        body = encode_request(request, model=MODEL, stream=False)
        whole = (await client.whole(**body))["choices"][0]
        (call,) = whole["message"]["tool_calls"]
        async with aclosing(client.chunks(**body)) as stream:
            choices = [choice async for chunk in stream for choice in chunk["choices"]]
        pieces = [piece for one in choices for piece in one["delta"].get("tool_calls") or ()]
        assert (pieces[0]["id"], pieces[0]["function"]["name"]) == (call["id"], name)
        assert "".join(piece["function"]["arguments"] for piece in pieces) == call["function"]["arguments"]
        assert choices[-1]["finish_reason"] == whole["finish_reason"] == "tool_calls"


async def test_an_answer_fits_the_schema_that_was_asked_for(client: Client) -> None:
    (choice,) = (await client.whole(**saying("Hello", response_format=in_form_of(SHORT))))["choices"]
    assert choice["finish_reason"] == "stop"
    found = json.loads(choice["message"]["content"])
    assert found["old"] in ("total", "amount") and found["line"] in (1, 2) and len(found) == 2


async def test_a_conversation_that_is_too_long_is_said_to_be_that(client: Client) -> None:
    if client.peer.engine == "llama-cpp":
        pytest.skip("llama.cpp's server breaks off a stream that it cannot begin, and gives no reason")
    there = upstream(client.peer.api, key=client.peer.key)
    try:
        with pytest.raises(ContextTooLong):
            await complete(there, request_of("word " * CONTEXT))
    finally:
        await there.close()


async def test_it_is_understood_without_a_word_of_which_engine_it_is(client: Client) -> None:
    """`engine` left out of the table: all spellings are sent."""
    named = upstream(client.peer.url, model_name=MODEL_THERE, quirks=ENGINES[client.peer.engine])
    plain = upstream(client.peer.url, model_name=MODEL_THERE)
    try:
        asked = request_of(TALK)
        answer = await complete(named, asked)
        assert answer.message.content and await complete(plain, asked) == answer
    finally:
        await named.close()
        await plain.close()


# ---- money


async def test_calls_are_charged_as_the_engine_counted_them(client: Client) -> None:
    before = len(await client.calls())
    text = TALK * 30
    usages = [(await client.whole(**saying(text, max_tokens=9)))["usage"] for _ in range(2)]
    rows = (await client.calls(before + 2))[1::-1]
    for usage, row in zip(usages, rows, strict=True):
        fresh = usage["prompt_tokens"] - usage["cached_tokens"]
        assert (row["uncached"], row["cached"]) == (fresh, usage["cached_tokens"])
        assert (row["output"], row["outcome"]) == (usage["completion_tokens"], "finished")
        assert row["charge"] == charge_of(usage)
        # llama.cpp's server tells no usage in a stream: the prompt is counted here, the answer guessed.
        assert row["estimated"] is (client.peer.engine == "llama-cpp")
    assert usages[0]["completion_tokens"] == usages[1]["completion_tokens"] > 0
    if client.peer.engine == "vllm":
        assert usages[1]["cached_tokens"] > 0
    assert (await client.door("ledger/verify"))["wrong"] == []


async def test_a_client_that_leaves_stops_the_engine_and_is_charged(client: Client) -> None:
    before = len(await client.calls())
    made = await client.metric("vllm:generation_tokens_total")
    async with aclosing(
        client.chunks(**saying(TALK, max_tokens=LONG, response_format=in_form_of(NAMES)))
    ) as stream:
        for _ in range(5):
            await anext(stream)
        if client.peer.engine == "vllm":
            assert await client.metric("vllm:num_requests_running") == 1
    row = (await client.calls(before + 1))[0]
    assert (row["outcome"], row["estimated"]) == ("aborted", True)
    assert 0 < row["output"] < LONG / 2 and row["charge"] > 0
    async with asyncio.timeout(20):
        while await busy(client):  # noqa: ASYNC110  in another process
            await asyncio.sleep(0.1)
    if client.peer.engine == "vllm":
        assert 0 < await client.metric("vllm:generation_tokens_total") - made < LONG / 2


async def busy(client: Client) -> bool:
    """Whether the engine works: as it says, or, where it does not say, by the time it takes of a core."""
    if client.peer.engine == "vllm":
        return await client.metric("vllm:num_requests_running") > 0
    before = ticks(client.peer.pid)
    await asyncio.sleep(1.0)
    return ticks(client.peer.pid) - before > 5


def ticks(pid: int) -> int:
    """Hundredths of a second of a core so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
