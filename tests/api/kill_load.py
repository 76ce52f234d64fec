"""A model endpoint, a mixed crowd of clients, and what both remember: for the tests that kill the server.

Every call has a number of its own in its text, and all that the endpoint does with a call, its words, pauses,
counts and defects, is a function of that number. So what a client was told can be held against what the
endpoint said, and against the one row of the ledger.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import aiohttp

MODEL = "told"
MAX_TOKENS = 64
PADDING = "x" * 600
"""So that the bound of the prompt, its bytes, covers every count that the endpoint tells."""


@dataclass(frozen=True)
class Fate:
    """What becomes of one call at the endpoint."""

    words: int
    pause_s: float
    usage: dict[str, int] | None
    """None: the endpoint does not tell."""
    trouble: str

    @classmethod
    def of(cls, number: int) -> Self:
        chance = random.Random(number)
        words, prompt = chance.randint(1, 12), chance.randint(20, 400)
        told = chance.random() > 0.1
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": words,
            "total_tokens": prompt + words,
            "cached_tokens": chance.randint(0, prompt),
        }
        trouble = chance.choices(("", "busy once", "cut"), (90, 3, 7))[0]
        return cls(words, chance.choice((0.0, 0.001, 0.004, 0.02)), usage if told else None, trouble)


class Endpoint:
    """An OpenAI-compatible endpoint on loopback that streams, is busy or breaks off as the number says."""

    def __init__(self) -> None:
        self.heard: Counter[int] = Counter()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):  # whoever called was killed
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = head.partition("content-length: ")[2].partition("\r\n")[0]
                body = await reader.readexactly(int(length or 0))
                if body:
                    await self._answer(number_of(json.loads(body)), writer)
                else:
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                await writer.drain()
        finally:
            writer.close()

    async def _answer(self, number: int, writer: asyncio.StreamWriter) -> None:
        self.heard[number] += 1
        fate = Fate.of(number)
        if fate.trouble == "busy once" and self.heard[number] == 1:
            writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for word in range(fate.words):
            writer.write(_chunk({"content": f"{word} "}))
            await writer.drain()
            await asyncio.sleep(fate.pause_s)
            if fate.trouble == "cut" and word == fate.words // 2:
                return
        writer.write(_chunk({}, finish_reason="stop", usage=fate.usage) + b"data: [DONE]\n\n")


def number_of(body: dict[str, Any]) -> int:
    return int(body["messages"][0]["content"].split()[1])


def _chunk(delta: dict[str, str], **choice: Any) -> bytes:
    value = {"id": "c", "choices": [{"index": 0, "delta": delta, **choice}]}
    return f"data: {json.dumps(value)}\n\n".encode()


@dataclass
class Call:
    """What a client remembers of one call."""

    number: int
    key: str
    request_id: str = ""
    """From the answer's headers, if any arrived."""
    status: int = 0
    usage: dict[str, Any] | None = None
    """Of an answer that arrived whole: a JSON body, or a stream with its `[DONE]`."""


class Crowd:
    """Clients that call without end: whole, streamed, and some that leave in the middle."""

    def __init__(self, url: str, keys: list[str], chance: random.Random, first: int) -> None:
        self.calls: list[Call] = []
        self._url = f"{url}/chat/completions"
        self._keys = keys
        self._chance = chance
        self._next = first

    @property
    def whole(self) -> int:
        """Answers that have arrived whole."""
        return sum(call.usage is not None for call in self.calls)

    @asynccontextmanager
    async def calling(self, size: int) -> Any:
        """In the block they call; the block must end by killing the server, which ends them."""
        self._over = False
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as web:
            tasks = [asyncio.ensure_future(self._one(web)) for _ in range(size)]
            try:
                yield self
            finally:
                self._over = True
                async with asyncio.timeout(20):
                    await asyncio.gather(*tasks)

    async def _one(self, web: aiohttp.ClientSession) -> None:
        while not self._over:
            self._next += 1
            call = Call(self._next, self._chance.choice(self._keys))
            self.calls.append(call)
            kind = self._chance.choice(("json", "json", "stream", "stream", "leaves", "leaves early"))
            try:
                if kind == "leaves early":
                    async with asyncio.timeout(self._chance.uniform(0.001, 0.05)):
                        await self._json(web, call)
                elif kind == "json":
                    await self._json(web, call)
                else:
                    await self._stream(web, call, leave_after=self._leave(kind))
            except (aiohttp.ClientError, OSError, TimeoutError):
                # Killed, or left on purpose; also what arrived before counts, for it was sent.
                await asyncio.sleep(0)

    def _leave(self, kind: str) -> int:
        return self._chance.randint(1, 4) if kind == "leaves" else 1_000

    async def _json(self, web: aiohttp.ClientSession, call: Call) -> None:
        async with web.post(self._url, json=self._body(call), headers=_auth(call)) as answer:
            call.request_id, call.status = answer.headers["x-request-id"], answer.status
            body = json.loads(await answer.read())
            if answer.status == 200:
                call.usage = body["usage"]

    async def _stream(self, web: aiohttp.ClientSession, call: Call, leave_after: int) -> None:
        body = self._body(call) | {"stream": True, "stream_options": {"include_usage": call.number % 2 == 0}}
        async with web.post(self._url, json=body, headers=_auth(call)) as answer:
            call.request_id, call.status = answer.headers["x-request-id"], answer.status
            usage, events = None, 0
            async for line in answer.content:
                data = line.removeprefix(b"data: ").strip()
                if data == b"[DONE]":
                    call.usage = usage
                elif line.startswith(b"data: "):
                    value, events = json.loads(data), events + 1
                    last: Any = (value.get("choices") or [{}])[0]
                    usage = value.get("usage") or last.get("usage") or usage
                if events >= leave_after:
                    answer.close()
                    return

    def _body(self, call: Call) -> dict[str, Any]:
        message = {"role": "user", "content": f"call {call.number} {PADDING}"}
        return {"model": MODEL, "messages": [message], "max_tokens": MAX_TOKENS}


def _auth(call: Call) -> dict[str, str]:
    return {"Authorization": f"Bearer {call.key}"}
