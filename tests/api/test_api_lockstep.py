"""Streams over real sockets: each event leaves before its successor exists, whatever stands between; and who
leaves stops the endpoint, pays for what was made, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from api_server import Api, Strange, serving

from perilune.accounts.accounts import Accounts
from perilune.api.serve import Server
from perilune.backends.base import Backend
from perilune.backends.choose import open_backend
from perilune.backends.quotes import BYTES_PER_TOKEN
from perilune.backends.upstream import UpstreamBackend
from perilune.chat.messages import (
    Event,
    Finished,
    Request,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from perilune.settings import Settings

SOON_S = 5.0
"""Bound of what happens at once on an idle machine."""
EVENTS: list[Event] = [
    ThinkingDelta("Hm, ☾"),
    ThinkingDelta(" é"),
    TextDelta("Grüße"),
    TextDelta(", 🌙"),
    ToolCallStarted(0, "functions.f:0", "f"),
    ToolCallDelta(0, '{"a": '),
    ToolCallDelta(0, "1}"),
]


class Lockstep(Strange):
    """Makes an event only after the client told that it has the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0
        self.heard = asyncio.Semaphore(0)

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        for event in EVENTS:
            self.made += 1
            yield event
            await self.heard.acquire()
        yield Finished("tool_calls", Usage(prompt_tokens=7, completion_tokens=9))


@asynccontextmanager
async def in_front_of(home: Path, **how: Any) -> AsyncIterator[Api]:
    """A second Perilune whose model is at another one's URL."""
    home.mkdir()
    settings = Settings(home=home, port=0, model_retries=0, **how)
    backend = await open_backend(settings)
    with Accounts.open(home, settings) as accounts:
        server = Server(settings, backend, accounts)
        await server.start()
        try:
            yield Api(server, accounts, settings)
        finally:
            await server.stop(grace_s=1)
            await backend.close()


@asynccontextmanager
async def chain(folder: Path, backend: Backend, way: str) -> AsyncIterator[Api]:
    """The door that clients knock at: the server itself, or one in front of it, or two."""
    async with AsyncExitStack() as stack:
        near = await stack.enter_async_context(serving(folder / "far", backend))
        if way == "one upstream":
            front = in_front_of(folder / "near", model_url=near.url, model_key=near.key)
            near = await stack.enter_async_context(front)
        if way == "replicas":
            table = {"url": near.url, "key": near.key, "model": "scripted"}
            tables = ({"name": "one", **table}, {"name": "two", **table})
            near = await stack.enter_async_context(in_front_of(folder / "near", backends=tables))
        yield near


WAYS = ("direct", "one upstream", "replicas")


async def open_stream(api: Api) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A bare socket: nothing between the test and the bytes."""
    host, port = api.root.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(
        {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {api.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    return reader, writer


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[Any]:
    """The body's server-sent events."""
    rest = b""
    while True:
        *whole, rest = rest.split(b"\n\n")
        for frame in whole:
            data = frame[frame.index(b"data: ") + 6 :]
            yield data.decode() if data == b"[DONE]" else json.loads(data)
        if not (more := await reader.read(65536)):
            return
        rest += more


@pytest.mark.parametrize("way", WAYS)
async def test_each_event_is_on_the_wire_before_its_successor_is_made(tmp_path: Path, way: str) -> None:
    backend, made = Lockstep(), []
    async with chain(tmp_path, backend, way) as api, asyncio.timeout(30):
        reader, writer = await open_stream(api)
        async for frame in frames(reader):
            if frame == "[DONE]":
                break
            choice = frame["choices"][0]
            if any(choice["delta"].get(name) for name in ("content", "reasoning_content", "tool_calls")):
                made.append(backend.made)
                backend.heard.release()
        writer.close()
        await writer.wait_closed()
        assert made == list(range(1, len(EVENTS) + 1))  # the n-th arrived while there were n
        assert api.rows() == ["finished"]


# ---- who leaves


def close_quietly(writer: asyncio.StreamWriter) -> None:
    writer.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """As a client that crashed: its end of the connection is gone without a word."""
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Watched:
    """An endpoint at byte level: some words, then silence; it notices when its caller closes the socket."""

    def __init__(self, words: int, *, endless: bool = False) -> None:
        self._words = words
        self._endless = endless
        self.sent = 0
        self.ended = asyncio.Event()

    async def __aenter__(self) -> Watched:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET"):
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()
            return
        length = head.lower().partition("content-length: ")[2].partition("\r\n")[0]
        await reader.readexactly(int(length))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        talking = asyncio.ensure_future(self._talk(writer))
        with contextlib.suppress(ConnectionResetError):  # closed with bytes in it that nobody has read
            await reader.read()  # returns when the caller's socket is closed
        self.ended.set()
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
        writer.close()

    async def _talk(self, writer: asyncio.StreamWriter) -> None:
        while self._endless or self.sent < self._words:
            self.sent += 1
            chunk = {"choices": [{"index": 0, "delta": {"content": "word"}}]}
            writer.write(f"data: {json.dumps(chunk)}\n\n".encode())
            await writer.drain()
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("leave", [close_quietly, reset])
@pytest.mark.parametrize("words", [0, 1, 5])
async def test_who_leaves_closes_the_endpoints_socket_and_pays_for_what_was_made(
    tmp_path: Path, leave: Callable[[asyncio.StreamWriter], None], words: int
) -> None:
    async with (
        Watched(words) as endpoint,
        in_front_of(tmp_path / "near", model_url=endpoint.url, model_name="scripted") as api,
    ):
        reader, writer = await open_stream(api)
        if words:
            found = 0
            async for frame in frames(reader):
                found += bool(frame["choices"][0]["delta"].get("content"))
                if found == words:
                    break
        else:
            await until(lambda: api.accounts.usage_rows(limit=1) != [])
            await asyncio.sleep(0.05)
        left = time.monotonic()
        leave(writer)
        async with asyncio.timeout(SOON_S):
            await endpoint.ended.wait()
        assert time.monotonic() - left < SOON_S
        await until(lambda: api.rows() == ["aborted"])
        (row,) = api.accounts.usage_rows()
        assert row.estimated and row.output == -(-words * len("word") // BYTES_PER_TOKEN)
        assert row.uncached > 0 and row.charge > 0


async def test_leaving_an_endpoint_that_never_pauses_stops_it_too(tmp_path: Path) -> None:
    async with (
        Watched(0, endless=True) as endpoint,
        in_front_of(tmp_path / "near", model_url=endpoint.url, model_name="scripted") as api,
    ):
        reader, writer = await open_stream(api)
        await anext(frames(reader))
        reset(writer)
        async with asyncio.timeout(SOON_S):
            await endpoint.ended.wait()
        await until(lambda: api.rows() == ["aborted"])
        (row,) = api.accounts.usage_rows()
        assert 1 <= row.output <= endpoint.sent


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  the condition lies in the database
            await asyncio.sleep(0.01)


# ---- the same events for any split of the upstream's bytes, over a socket


async def test_cut_at_every_byte_an_upstreams_answer_is_the_same(tmp_path: Path) -> None:
    """The two parts leave in two segments; the decoder's own tests cut with certainty."""
    lines = [
        ': hello\r\n\r\ndata: {"choices":[{"delta":{"reasoning_content":"☾"}}]}\r\n\r\n',
        'data:{"choices":[{"delta":{"content":"Grüße 🌙"}}]}\r\n\r\n: within\r\n',
        'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3}}\r\n\r\n',
        "data: [DONE]\r\n\r\n",
    ]
    data, cuts = "".join(lines).encode(), iter(range(1, 10_000))
    ended: asyncio.Queue[None] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            except asyncio.IncompleteReadError:
                writer.close()
                ended.put_nowait(None)
                return
            await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
            cut = next(cuts)
            head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode())
            for part in (data[:cut], data[cut:]):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    entry = (await Strange().models())[0]
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    backend = UpstreamBackend(url, entry=entry, model_name="m", retries=0)
    request = Request(model="m", messages=())
    try:
        for _ in range(1, len(data)):
            assert [event async for event in backend.stream(request)] == [
                ThinkingDelta("☾"),
                TextDelta("Grüße 🌙"),
                Finished("stop", Usage(prompt_tokens=3)),
            ]
    finally:
        await backend.close()
        await ended.get()  # it was one connection for all of them
        server.close()
        await server.wait_closed()
