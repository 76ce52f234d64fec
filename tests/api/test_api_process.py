"""`perilune serve` as its own process, with another Perilune as its model endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from api_server import Api, Slow, serving, talk, talker
from openai import AsyncOpenAI

from perilune.accounts.accounts import Accounts
from perilune.settings import Settings

SOURCE = Path(__file__).parents[2] / "src"
HI: list[Any] = [{"role": "user", "content": "Hi"}]


class Perilune:
    """A running `perilune serve`."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, key: str) -> None:
        self.process = process
        self.url = url
        self.key = key

    def client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.url, api_key=self.key, max_retries=0)

    async def end(self) -> int:
        async with asyncio.timeout(30):
            return await self.process.wait()


@asynccontextmanager
async def perilune_serve(home: Path, upstream: Api, *flags: str) -> AsyncIterator[Perilune]:
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(SOURCE),
        "PERILUNE_MODEL_URL": upstream.url,
        "PERILUNE_MODEL_KEY": upstream.key,
        "PERILUNE_MODEL_NAME": "scripted",
        "PERILUNE_MODEL_RETRIES": "0",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "perilune", "serve", "--home", str(home), "--port", "0", *flags,
        env=env, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            first = (await process.stdout.readline()).decode()
            await process.stdout.readuntil(b"Ctrl-C\n")
        key = json.loads((home / "keys.json").read_text())["project_key"]
        yield Perilune(process, first.split(" at ")[1].strip(), key)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_from_client_to_endpoint_and_a_drained_end(tmp_path: Path) -> None:
    async with serving(tmp_path / "upstream", Slow(talk, chunk=1)) as upstream:
        home = tmp_path / "home"
        async with perilune_serve(home, upstream, "--serve-as", "kimi-k2.6") as running:
            assert (home / "keys.json").stat().st_mode & 0o777 == 0o600
            async with running.client() as ai:
                stream = await ai.chat.completions.create(model="kimi-k2.6", messages=HI, stream=True)
                text, thought, asked_to_end = "", "", False
                async for chunk in stream:
                    if not asked_to_end:
                        running.process.send_signal(signal.SIGTERM)
                        asked_to_end = True
                    delta: Any = chunk.choices[0].delta
                    text += delta.content or ""
                    thought += getattr(delta, "reasoning_content", None) or ""
            assert (text, thought) == ("You said: Hi", "A greeting is due.")
            assert await running.end() == 0
        with Accounts.open(home, Settings.load(home, {}, {})) as accounts:
            ours, theirs = accounts.usage_rows()[0], upstream.accounts.usage_rows()[0]
            assert (ours.outcome, ours.uncached, ours.cached, ours.output, ours.estimated) == (
                "finished", theirs.uncached, theirs.cached, theirs.output, False,
            )  # fmt: skip
            assert accounts.verify() == ()


async def test_without_its_endpoint_it_says_so_and_still_ends_well(tmp_path: Path) -> None:
    async with serving(tmp_path / "upstream", talker()) as upstream:
        async with perilune_serve(tmp_path / "home", upstream) as running:
            await upstream.server.stop(grace_s=1)
            async with aiohttp.ClientSession() as web, running.client() as ai:
                async with web.get(running.url.removesuffix("/v1") + "/readyz") as answer:
                    assert (answer.status, (await answer.json())["reason"]) == (503, "backend_unreachable")
                with pytest.raises(openai.InternalServerError, match="nothing answers"):
                    await ai.chat.completions.create(model="scripted", messages=HI)
            running.process.send_signal(signal.SIGINT)
            assert await running.end() == 0
