"""A real HTTP server on the loopback address that misbehaves to order, byte by byte."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15, "cached_tokens": 8}


@dataclass
class Heard:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


Handler = Callable[[Heard, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Endpoint:
    """Calls the n-th handler for the n-th request, the last one for all that follow."""

    handlers: list[Handler]
    heard: list[Heard] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """A client closed its connection."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (heard := await _read(reader)) is not None:
                self.heard.append(heard)
                at = min(len(self.heard), len(self.handlers)) - 1
                work = asyncio.ensure_future(self.handlers[at](heard, writer))
                left = asyncio.ensure_future(reader.read(1))
                await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
                if left.done() or writer.is_closing():
                    self.gone.set()
                    work.cancel()
                    break
                left.cancel()
                break  # one request per connection keeps the reading of `left` simple
            await asyncio.gather(work, left, return_exceptions=True)
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Heard | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    method, path, _ = first.split()
    return Heard(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


# ---- handlers


def answer(
    body: Any, status: int = 200, kind: str = "application/json", headers: dict[str, str] | None = None
) -> Handler:
    """A whole response."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"Content-Type": kind, "Content-Length": str(len(data)), "Connection": "close"} | (headers or {})

    async def handle(heard: Heard, writer: asyncio.StreamWriter) -> None:
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(f"HTTP/1.1 {status} Reason\r\n{head}\r\n".encode() + data)
        await writer.drain()

    return handle


def error(status: int, message: str = "no", kind: str = "some_error", **headers: str) -> Handler:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer({"error": {"message": message, "type": kind}}, status, headers=names)


def raw(data: bytes, then: float | None = 0.0) -> Handler:
    """These bytes and no more: then the connection ends, or stays silent when `then` is None."""

    async def handle(heard: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if then is None:
            await asyncio.Event().wait()

    return handle


def chunk(**choice: Any) -> bytes:
    delta = choice.pop("delta", {})
    value = {"id": "c", "choices": [{"index": 0, "delta": delta, **choice}]}
    return f"data: {json.dumps(value)}\n\n".encode()


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
GOOD_CHUNKS = (
    chunk(delta={"role": "assistant", "content": ""}),
    chunk(delta={"reasoning_content": "hm"}),
    chunk(delta={"content": "Hello"}),
    chunk(delta={}, finish_reason="stop", usage=USAGE),
    b"data: [DONE]\n\n",
)
GOOD = raw(STREAM_HEAD + b"".join(GOOD_CHUNKS))


def models(*names: str, **more: Any) -> Handler:
    return answer({"object": "list", "data": [{"id": name, "object": "model", **more} for name in names]})
