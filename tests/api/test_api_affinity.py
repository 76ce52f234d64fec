"""Two gateway processes before three replicas: a conversation goes to the same one through either, so that
its prefix is found there, and the ledgers bill what was found."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp

from perilune.accounts.accounts import Accounts
from perilune.settings import Settings

SOURCE = Path(__file__).parents[2] / "src"
BLOCK = 64
"""Characters of a cached block, each one token."""
CONVERSATIONS, TURNS = 10, 14


class Replica:
    """An endpoint with a prefix cache of whole blocks, as engines have it, that tells what it found."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.answered: list[str] = []
        """The conversations, call by call."""
        self._blocks: set[str] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
        if length:
            answer = self._answer(json.loads(await reader.readexactly(length)))
            lines = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
        else:
            lines, answer = "HTTP/1.1 404 Not Found\r\nConnection: close\r\n", b""
        writer.write(f"{lines}Content-Length: {len(answer)}\r\n\r\n".encode() + answer)
        await writer.drain()
        writer.close()

    def _answer(self, body: dict[str, Any]) -> bytes:
        self.answered.append(body["messages"][1]["content"].partition(":")[0])
        text = json.dumps(body["messages"])
        prefixes = [text[:end] for end in range(BLOCK, len(text) + 1, BLOCK)]
        cached = 0
        while cached < len(prefixes) and prefixes[cached] in self._blocks:
            cached += 1
        self._blocks.update(prefixes)
        usage = {"prompt_tokens": len(text), "cached_tokens": cached * BLOCK, "completion_tokens": 9}
        message = {"role": "assistant", "content": f"answer {len(body['messages'])}"}
        return json.dumps(
            {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        ).encode()


@asynccontextmanager
async def gateway(home: Path, replicas: list[Replica]) -> AsyncIterator[tuple[str, str]]:
    """`perilune serve` as a process of its own: its URL, and a key."""
    home.mkdir()
    (home / "perilune.toml").write_text(
        "\n".join(
            f'[[backends]]\nname = "{one.name}"\nurl = "{one.url}"\nmodel = "m"\nserves = "kimi-k2.6"'
            for one in replicas
        )
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "perilune", "serve", "--home", str(home), "--port", "0", "--log-level", "error",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "PYTHONHASHSEED": "random"},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            first = (await process.stdout.readline()).decode()
            await process.stdout.readuntil(b"Ctrl-C\n")
        yield first.split(" at ")[1].strip(), json.loads((home / "keys.json").read_text())["project_key"]
    finally:
        process.terminate()
        await process.wait()


def opening(number: int) -> list[dict[str, str]]:
    """An agent's conversation: the same instructions for all, then a task with a page of its own."""
    page = "".join(random.Random(number).choices("abcdefgh ☾", k=3000))
    system = {"role": "system", "content": "You mend programs. " * 60}
    return [system, {"role": "user", "content": f"conversation {number}: mend this. {page}"}]


async def replay(web: aiohttp.ClientSession, doors: list[tuple[str, str]], chance: random.Random) -> None:
    """Turn by turn, the conversations mixed, each turn through either door."""
    conversations = [opening(number) for number in range(CONVERSATIONS)]
    for turn in range(TURNS):
        for messages in chance.sample(conversations, len(conversations)):
            url, key = chance.choice(doors)
            body = {"model": "kimi-k2.6", "messages": messages, "max_tokens": 9}
            headers = {"Authorization": f"Bearer {key}"}
            async with web.post(f"{url}/chat/completions", json=body, headers=headers) as answer:
                told = await answer.json()
                assert answer.status == 200, told
            messages.append({"role": "assistant", "content": told["choices"][0]["message"]["content"]})
            messages.append({"role": "user", "content": f"turn {turn}: go on. " + "It failed again. " * 8})


async def test_a_conversation_finds_its_prefix_through_either_of_two_gateways(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(Replica(name)) for name in ("a", "b", "c")]
        homes = [tmp_path / "first", tmp_path / "second"]
        # The order of the tables plays no part, only the names do.
        doors = [
            await stack.enter_async_context(gateway(homes[0], replicas)),
            await stack.enter_async_context(gateway(homes[1], replicas[::-1])),
        ]
        web = await stack.enter_async_context(aiohttp.ClientSession())
        await replay(web, doors, random.Random(7))
    places = {name: {one.name for one in replicas if name in one.answered} for name in names(replicas)}
    assert len(places) == CONVERSATIONS
    assert all(len(found) == 1 for found in places.values()), places
    assert all(one.answered for one in replicas)
    cached = prompt = 0
    for home in homes:
        with Accounts.open(home, Settings.load(home, {}, {})) as accounts:
            assert accounts.verify() == ()
            rows = accounts.usage_rows(limit=1000)
            assert rows and all(row.outcome == "finished" for row in rows)
            cached += sum(row.cached for row in rows)
            prompt += sum(row.cached + row.uncached for row in rows)
            for row in rows:
                due = row.uncached * 950 + row.cached * 160 + row.output * 4000
                assert row.charge == due  # cached tokens are billed once, at their own price
    later = CONVERSATIONS * (TURNS - 1)
    assert sum(len(one.answered) for one in replicas) == later + CONVERSATIONS
    print(f"{cached / prompt:.1%} of {prompt} prompt tokens came from caches")
    assert cached / prompt >= 0.9


def names(replicas: list[Replica]) -> set[str]:
    return {name for one in replicas for name in one.answered}
