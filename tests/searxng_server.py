"""The other side: a server on loopback that answers as SearXNG does, as far as its JSON goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

PAGES: tuple[dict[str, Any], ...] = (
    {
        "url": "https://moon.example/perigee",
        "title": "Perigee and perilune",
        "content": "Perilune is the point of an orbit that is nearest to the Moon.",
        "engine": "one",
        "score": 2.5,
    },
    {"url": "https://moon.example/apogee", "title": "Apogee", "content": None, "engine": "two", "score": 1},
    {"url": "magnet:?xt=urn:1", "title": "A film", "content": "", "engine": "files"},
)


@dataclass
class Searxng:
    url: str = ""
    queries: list[str] = field(default_factory=list)
    results: tuple[dict[str, Any], ...] = PAGES
    status: int = 200
    body: bytes | None = None
    """Sent in the place of the results."""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the first query has arrived."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.Response:
        assert request.query["format"] == "json"
        self.queries.append(request.query["q"])
        self.reached.set()
        if self.delay:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), self.delay)
        found = {"query": request.query["q"], "number_of_results": 0, "results": list(self.results)}
        found |= {
            "answers": [],
            "corrections": [],
            "infoboxes": [],
            "suggestions": [],
            "unresponsive_engines": [],
        }
        body = json.dumps(found).encode() if self.body is None else self.body
        return web.Response(
            body=body, status=self.status, content_type="application/json", headers=self.headers
        )


@asynccontextmanager
async def searxng() -> AsyncIterator[Searxng]:
    server = Searxng()
    app = web.Application()
    app.router.add_get("/search", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        server.ended.set()
        await runner.cleanup()
