"""What an endpoint sends has bounds: an answer without end costs it the connection and us nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from loopback import STREAM_HEAD, Endpoint, Handler, Heard, chunk

from perilune.backends import endpoint, upstream
from perilune.backends.base import ModelEntry, complete
from perilune.backends.upstream import UpstreamBackend
from perilune.chat import wire_stream
from perilune.chat.messages import Message, Request
from perilune.errors import BackendError, BackendProtocol

HI = Request(model="mine", messages=(Message(role="user", content="hi"),))
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
SORRY_HEAD = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"


def forever(head: bytes, piece: bytes) -> Handler:
    async def handler(heard: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()

    return handler


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[UpstreamBackend]:
    entry = ModelEntry(id="mine", backend="upstream", context_length=1000, max_output_tokens=100)
    async with Endpoint([handler]) as there:
        backend = UpstreamBackend(there.url, entry=entry, timeout_s=20, retries=0)
        try:
            yield backend
            async with asyncio.timeout(5):
                await there.gone.wait()
        finally:
            await backend.close()


@pytest.mark.parametrize(
    ("head", "piece", "words"),
    [
        (STREAM_HEAD, b"x" * 5000, "endless line"),
        (STREAM_HEAD, b"data: x\n" * 500, "endless event"),
        (STREAM_HEAD, chunk(delta={"content": "on"}) * 50, "does not end"),
        (JSON_HEAD, b" " * 5000, "answer is endless"),
        (SORRY_HEAD, b"y" * 5000, "answer is endless"),
    ],
    ids=["line", "event", "stream", "json", "refusal"],
)
async def test_what_does_not_end_is_cut(
    monkeypatch: pytest.MonkeyPatch, head: bytes, piece: bytes, words: str
) -> None:
    monkeypatch.setattr(wire_stream, "MAX_EVENT_BYTES", 2_000_000)
    monkeypatch.setattr(upstream, "MOST_STREAM_BYTES", 5_000_000)
    monkeypatch.setattr(endpoint, "MOST_ANSWER_BYTES", 1_000_000)
    async with served(forever(head, piece)) as backend:
        async with asyncio.timeout(10):
            with pytest.raises(BackendError, match=words) as refused:
                await complete(backend, HI)
    assert isinstance(refused.value, BackendProtocol)
    assert len(str(refused.value)) < 2000
