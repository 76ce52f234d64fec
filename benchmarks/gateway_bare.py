"""The yardstick of `gateway.py`: a thin proxy of stock parts, raw ASGI on uvicorn with aiohttp, as an app.

It looks a key up, reads request and usage, prices the call and keeps that in a list: no limits, no balance,
nothing on the disk, no dialect. What it costs says how fast a machine is at this kind of work.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import aiohttp
import msgspec

REFERENCE_US_PER_REQUEST = 139
"""Where the targets were set: 32 clients; two cores of a Xeon (Sapphire Rapids), Python 3.11.7."""
REFERENCE_US_PER_EVENT = 42
"""300 streams of 50 events a second each."""
KEY = "sk-bare"
DIGESTS = {hashlib.sha256(KEY.encode()).hexdigest(): "bench"}
MOST_TAIL_BYTES = 1024

charges: list[tuple[str, int]] = []
read = msgspec.json.decode


class Bare:
    """The session is opened in the loop that uses it."""

    session: aiohttp.ClientSession

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        who = DIGESTS[hashlib.sha256(dict(scope["headers"])[b"authorization"][7:]).hexdigest()]
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        read(body)
        headers = {"content-type": "application/json"}
        async with self.session.post(os.environ["BARE_URL"], data=body, headers=headers) as answer:
            kind = answer.headers["content-type"].encode()
            await send(
                {
                    "type": "http.response.start",
                    "status": answer.status,
                    "headers": [(b"content-type", kind)],
                }
            )
            streamed = kind == b"text/event-stream"
            usage = await (_pass_on(answer, send) if streamed else _whole(answer, send))
        charges.append((who, usage["prompt_tokens"] * 950 + usage["completion_tokens"] * 4000))

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.session.close()
        await send({"type": "lifespan.shutdown.complete"})


async def _whole(answer: aiohttp.ClientResponse, send: Any) -> dict[str, int]:
    body = await answer.read()
    await send({"type": "http.response.body", "body": body})
    usage: dict[str, int] = read(body)["usage"]
    return usage


async def _pass_on(answer: aiohttp.ClientResponse, send: Any) -> dict[str, int]:
    tail = b""
    async for piece in answer.content.iter_any():
        tail = (tail + piece)[-MOST_TAIL_BYTES:]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
    last = tail.rpartition(b"\n\ndata: [DONE]")[0].rpartition(b"data: ")[2]
    usage: dict[str, int] = read(last)["usage"]
    return usage


app = Bare()
