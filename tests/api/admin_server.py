"""`serve` with its admin door open, in this process, and a client of the door."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from api_server import talker

from perilune.api.serve import OpenModel, Server, serve
from perilune.backends.base import Backend
from perilune.backends.router import Router
from perilune.settings import Settings
from perilune.store import home_holder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Door:
    def __init__(self, home: Path, web: aiohttp.ClientSession, url: str) -> None:
        self.home = home
        self.url = url
        self._web = web
        self.keys = json.loads((home / "keys.json").read_text())

    async def act(
        self, name: str, using: str = "", method: str = "POST", /, **fields: Any
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {using or self.keys['admin_key']}"}
        body = fields if method == "POST" else None
        async with self._web.request(method, f"{self.url}/{name}", json=body, headers=headers) as answer:
            return answer.status, json.loads(await answer.read())


async def open_talker(_: Settings) -> Backend:
    return Router([talker()])


@asynccontextmanager
async def running(home: Path, open_model: OpenModel = open_talker, **flags: object) -> AsyncIterator[Door]:
    ready: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
    settings = Settings.load(home, {"port": 0, "admin_port": free_port()} | flags, {})
    task = asyncio.create_task(serve(settings, on_ready=ready.set_result, open_model=open_model))
    await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    holder = home_holder(home)
    assert holder is not None and holder.admin == f"http://127.0.0.1:{settings.admin_port}/admin"
    async with aiohttp.ClientSession() as web:
        try:
            yield Door(home, web, holder.admin)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await task
