"""An endpoint that breaks off an answer when another request comes gets one request at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from loopback import GOOD_CHUNKS, STREAM_HEAD, Endpoint, error

from perilune.backends.base import complete
from perilune.backends.choose import open_backend
from perilune.backends.router import Router
from perilune.chat.messages import Message, Request
from perilune.settings import Settings

SHAPE = {"type": "object", "properties": {"a": {"type": "integer"}}}


def ask(text: str, **more: Any) -> Request:
    return Request(model="m", messages=(Message(role="user", content=text),), **more)


class Held:
    """Answers each call up to its first words, and the rest when it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, heard: Any, writer: asyncio.StreamWriter) -> None:
        if heard.method != "POST":
            await error(404)(heard, writer)
            return
        writer.write(STREAM_HEAD + b"".join(GOOD_CHUNKS[:3]))
        await writer.drain()
        await self.go.wait()
        writer.write(b"".join(GOOD_CHUNKS[3:]))
        await writer.drain()


@asynccontextmanager
async def served(home: Path, held: Held, engine: str) -> AsyncIterator[tuple[Router, Endpoint]]:
    async with Endpoint([held]) as endpoint:
        table = {"name": "a", "url": endpoint.url, "model": "m", "engine": engine}
        router = await open_backend(Settings(home=home, backends=(table,), model_retries=0))
        assert isinstance(router, Router)
        endpoint.heard.clear()
        try:
            yield router, endpoint
        finally:
            await router.close()


async def test_neither_a_call_nor_a_look_disturbs_an_answer(tmp_path: Path) -> None:
    held = Held()
    async with served(tmp_path, held, "llama-cpp") as (router, endpoint):
        async with aclosing(router.stream(ask("first"))) as events:
            await anext(events)
            waiting = asyncio.create_task(complete(router, ask("second")))
            await router.ready()
            await asyncio.sleep(0.05)
            assert len(endpoint.heard) == 1
            held.go.set()
            assert [event async for event in events]
        assert (await waiting).message.content == "Hello"
        await router.ready()
    assert [heard.method for heard in endpoint.heard] == ["POST", "POST", "GET"]


async def test_who_leaves_makes_room_and_who_waits_can_go(tmp_path: Path) -> None:
    held = Held()
    async with served(tmp_path, held, "llama-cpp") as (router, endpoint):
        async with aclosing(router.stream(ask("first"))) as events:
            await anext(events)
            gone = asyncio.create_task(complete(router, ask("second")))
            await asyncio.sleep(0.02)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        held.go.set()
        assert (await complete(router, ask("third"))).message.content == "Hello"
    assert [heard.json["messages"][0]["content"] for heard in endpoint.heard] == ["first", "third"]


async def test_other_engines_are_asked_at_once(tmp_path: Path) -> None:
    held = Held()
    async with served(tmp_path, held, "vllm") as (router, endpoint):
        calls = [asyncio.create_task(complete(router, ask(text))) for text in "ab"]
        async with asyncio.timeout(5):
            while len(endpoint.heard) < 2:  # noqa: ASYNC110  the endpoint tells nobody
                await asyncio.sleep(0.01)
        held.go.set()
        await asyncio.gather(*calls)


async def test_a_schema_is_put_where_llama_cpp_reads_it(tmp_path: Path) -> None:
    held = Held()
    held.go.set()
    async with served(tmp_path, held, "llama-cpp") as (router, endpoint):
        for schema in (SHAPE, {}, None):
            await complete(router, ask("x", json_schema=schema))
    assert [heard.json.get("response_format") for heard in endpoint.heard] == [
        {"type": "json_object", "schema": SHAPE},
        {"type": "json_object"},
        None,
    ]
