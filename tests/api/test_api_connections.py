"""What a connection may not do: dawdle over a head, send too large a one, leave an answer unread, be one too
many."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from api_server import Api, Strange, serving, talker

from perilune.api import connections, http
from perilune.chat.messages import Event, Request, TextDelta

CHAT = "/v1/chat/completions"
HI = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected(api: Api) -> AsyncIterator[Streams]:
    host, port = api.root.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """All that still comes until the server closes the connection."""
    async with asyncio.timeout(10):
        return await reader.read()


def refused(answer: bytes, status: int) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status, head
    assert b"connection: close" in head.lower()
    error: dict[str, Any] = json.loads(body)["error"]
    return error


def request(api: Api, path: str = "/healthz", *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {api.key}", *headers]
    return "\r\n".join((*lines, "", "")).encode()


async def test_a_head_that_dawdles_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    async with serving(tmp_path, talker()) as api:
        for begun in (b"", b"GET / HTTP/1.1\r\nHost: x\r\nA: ", b"\r\n"):
            async with connected(api) as (reader, writer):
                writer.write(begun)
                assert await ended(reader) == b""


async def test_trickling_does_not_win_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    async with serving(tmp_path, talker()) as api, connected(api) as (reader, writer):
        writer.write(request(api))
        await reader.readuntil(b'{"status":"ok"}')
        ending = asyncio.ensure_future(ended(reader))
        for _ in range(100):
            if ending.done():
                break
            writer.write(b"\r\n")  # which begins no head
            await asyncio.sleep(0.02)
        assert ending.done() and await ending == b""


async def test_a_slow_answer_is_not_a_slow_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.1)

    class Sleepy(Strange):
        async def models(self) -> Any:
            await asyncio.sleep(0.4)
            return await super().models()

    async with serving(tmp_path, Sleepy()) as api, connected(api) as (reader, writer):
        for _ in range(2):
            writer.write(request(api, "/readyz"))
            async with asyncio.timeout(5):
                assert (await reader.readuntil(b'{"status":"ready"}')).startswith(b"HTTP/1.1 200")


async def test_an_idle_connection_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perilune.api.serve.IDLE_S", 0.2)
    assert connections.IDLE_S == 30
    async with serving(tmp_path, talker()) as api, connected(api) as (reader, writer):
        writer.write(request(api))
        assert (await ended(reader)).endswith(b'{"status":"ok"}')


@pytest.mark.parametrize("place", ["one value", "many", "path", "never ends"])
async def test_a_head_has_a_size(tmp_path: Path, place: str) -> None:
    most = connections.MAX_HEAD_BYTES
    heads = {
        "one value": ["A: " + "a" * most],
        "many": [f"A{n}: {'a' * 90}" for n in range(most // 90)],
        "path": [],
        "never ends": [],
    }
    async with serving(tmp_path, talker()) as api, connected(api) as (reader, writer):
        path = f"/{'a' * most}" if place == "path" else "/healthz"
        sent = request(api, path, *heads[place])
        if place == "never ends":
            sent = b"GET / HTTP/1.1\r\nA: "
            for _ in range(10):
                writer.write(sent)
                await asyncio.sleep(0.01)
                sent = b"a" * (most // 10 + 1)
        writer.write(sent)
        error = refused(await ended(reader), 431)
        assert str(most) in error["message"]


async def test_a_head_just_within_its_size_passes(tmp_path: Path) -> None:
    async with serving(tmp_path, talker()) as api, connected(api) as (reader, writer):
        for _ in range(2):  # the second head is counted anew
            writer.write(request(api, "/healthz", f"A: {'a' * (connections.MAX_HEAD_BYTES - 300)}"))
            async with asyncio.timeout(5):
                assert (await reader.readuntil(b'{"status":"ok"}')).startswith(b"HTTP/1.1 200")


async def test_a_large_body_is_no_large_head(tmp_path: Path) -> None:
    body = json.dumps(HI | {"padding": "x" * 100_000}).encode()
    async with serving(tmp_path, talker()) as api, connected(api) as (reader, writer):
        for _ in range(2):
            writer.write(request(api, CHAT, f"Content-Length: {len(body)}", method="POST") + body)
            async with asyncio.timeout(5):
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                await reader.readuntil(b"}}}")


async def test_what_is_not_http_is_told_so_in_json(tmp_path: Path) -> None:
    async with serving(tmp_path, talker()) as api, connected(api) as (reader, writer):
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        assert refused(await ended(reader), 400)["type"] == "invalid_request_error"


async def test_there_are_only_so_many_connections(tmp_path: Path) -> None:
    async with serving(tmp_path, talker(), max_connections=3) as api, contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(connected(api)) for _ in range(3)]
        for reader, writer in held:
            writer.write(request(api))
            await reader.readuntil(b'{"status":"ok"}')
        async with connected(api) as (reader, _):
            assert refused(await ended(reader), 503)["type"] == "server_unavailable"
        held[0][1].transport.abort()
        async with asyncio.timeout(5):
            while True:  # the server hears of it a moment later
                async with connected(api) as (reader, writer):
                    writer.write(request(api))
                    if (await reader.readline()).startswith(b"HTTP/1.1 200"):
                        break


async def test_a_body_that_stands_still_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STALL_S", 0.3)
    async with serving(tmp_path, talker()) as api, connected(api) as (reader, writer):
        writer.write(request(api, CHAT, "Content-Length: 99", method="POST"))
        for _ in range(4):  # each piece in time, all together not
            writer.write(b" ")
            await asyncio.sleep(0.15)
        assert b"stood still" in await ended(reader)


class Torrent(Strange):
    """Talks as fast as it is listened to, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.said = 0

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        try:
            while True:
                self.said += 1
                yield TextDelta("on and on " * 1000)
                await asyncio.sleep(0)
        finally:
            self.closed += 1


async def test_who_does_not_read_stops_the_model_and_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "UNREAD_S", 1.0)
    backend = Torrent()
    body = json.dumps(HI | {"stream": True}).encode()
    async with serving(tmp_path, backend) as api:
        host, port = api.root.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(request(api, CHAT, f"Content-Length: {len(body)}", method="POST") + body)
            before = -1
            async with asyncio.timeout(10):
                while backend.said != before or not before:  # until the buffers are full
                    before = backend.said
                    await asyncio.sleep(0.15)
            assert backend.closed == 0
            async with asyncio.timeout(10):
                while not backend.closed:  # noqa: ASYNC110  no event tells of it
                    await asyncio.sleep(0.02)
            assert backend.said <= before + 1
        async with asyncio.timeout(10):
            while api.rows() != ["aborted"]:  # noqa: ASYNC110  it lies in the database
                await asyncio.sleep(0.02)


async def test_encoded_bodies_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, talker()) as api:
        for path in (CHAT, "/v1/files"):
            async with connected(api) as (reader, writer):
                kind = "application/json" if path == CHAT else "multipart/form-data; boundary=x"
                headers = ("Content-Length: 9", "Content-Encoding: gzip", f"Content-Type: {kind}")
                writer.write(request(api, path, *headers, method="POST") + b"\x1f\x8b")
                assert "content-encoding" in refused(await ended(reader), 415)["message"]
