"""Two hundred thousand cheap calls to one server: what it holds must not grow with what it has done."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from benchmarks.gateway_traffic import Client
from soak_server import SLOWLY

from perilune.accounts.accounts import DATABASE, Accounts
from perilune.settings import Settings

CALLS = int(os.environ.get("PERILUNE_SOAK_CALLS", "200000"))
ROUNDS = 20
WARM_ROUNDS = 8
"""Rounds before memory is watched: caches, the rate windows and the disk's pages fill up meanwhile."""
CLIENTS = 32
MOST_MB_PER_100K = 1.0
MOST_ROW_BYTES = 500
MOST_LOG_BYTES = 128 * 1024 * 1024
PREPAID = """prepaid = true
tier = "soak"
tier_book = "{home}/tiers.toml"
"""
TIER = '[[tier]]\nname = "soak"\nconcurrency = 500\nrpm = 10_000_000\ntpm = 100_000_000_000\ntpd = 0\n'

KINDS = {
    "whole": (76, 200),
    "stream": (14, 200),
    "left": (3, 0),
    "no key": (2, 401),
    "bad body": (2, 400),
    "bad field": (1, 400),
    "no model": (1, 404),
    "no route": (1, 404),
}
"""Kind of call -> its share in percent, and the status that it is answered with. `left` hangs up half-way."""


@dataclass(frozen=True)
class Sample:
    rss_mb: float
    files: int
    threads: int
    tasks: int
    objects: int
    log_bytes: int
    rows_bytes: int


class Soaked:
    """The server's process."""

    def __init__(self, process: asyncio.subprocess.Process, home: Path, port: int) -> None:
        self._process = process
        self._home = home
        self.port = port
        self.key: str = json.loads((home / "keys.json").read_text())["project_key"]

    async def inner(self) -> dict[str, Any]:
        return await ask(self._process)

    async def sample(self) -> Sample:
        """Once nothing is under way any more."""
        await asyncio.sleep(0.3)
        inner = await self.inner()
        own = Path(f"/proc/{self._process.pid}")
        database = self._home / DATABASE
        return Sample(
            rss_mb=int((own / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6,
            files=len(list((own / "fd").iterdir())),
            threads=len(list((own / "task").iterdir())),
            tasks=inner["tasks"],
            objects=inner["objects"],
            log_bytes=database.with_name(f"{DATABASE}-wal").stat().st_size,
            rows_bytes=database.stat().st_size,
        )


async def ask(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"\n")
    found: dict[str, Any] = json.loads(await process.stdout.readline())
    return found


@asynccontextmanager
async def soaked(home: Path) -> AsyncIterator[Soaked]:
    home.mkdir()
    (home / "tiers.toml").write_text(TIER)
    (home / "perilune.toml").write_text(PREPAID.format(home=home))
    with Accounts.open(home, Settings.load(home, {}, {})) as accounts:
        accounts.wallets.enter(1, "deposit", 10**15, "soak", actor="soak")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("soak_server.py")), str(home)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            await process.stdout.readuntil(b"Ctrl-C\n")
            url = (await ask(process))["url"]
        yield Soaked(process, home, int(url.rpartition(":")[2].partition("/")[0]))
        process.terminate()
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Crowd:
    """The clients: each keeps its connection as long as the server lets it."""

    def __init__(self, server: Soaked) -> None:
        self._server = server
        self._requests = {kind: request(kind, server) for kind in KINDS}
        self.wrong: Counter[tuple[str, int]] = Counter()

    async def round(self, calls: int, seed: int) -> None:
        chance = random.Random(seed)
        kinds = chance.choices(list(KINDS), [share for share, _ in KINDS.values()], k=calls)
        left = iter(kinds)
        await asyncio.gather(*(self._work(left, f"127.0.1.{1 + place}") for place in range(CLIENTS)))

    async def _work(self, left: Any, address: str) -> None:
        """Each from an address of its own: one that came with so many wrong keys would be held off."""
        client: Client | None = None
        for kind in left:
            if client is None or client.gone:
                client = await self._connect(address)
            answer = client.ask(self._requests[kind])
            if kind == "left":
                await asyncio.sleep(0.03)
                client.close()
                continue
            await answer
            if client.status != KINDS[kind][1]:
                self.wrong[kind, client.status] += 1
        if client is not None:
            client.close()

    async def _connect(self, address: str) -> Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(
            Client, "127.0.0.1", self._server.port, local_addr=(address, 0)
        )
        return client


def request(kind: str, server: Soaked) -> bytes:
    body: dict[str, Any] = {
        "model": "nobody" if kind == "no model" else "scripted",
        "messages": [{"role": "user", "content": SLOWLY if kind == "left" else "Hello"}],
        "stream": kind in ("stream", "left"),
    }
    if kind == "bad field":
        body["temperature"] = 7
    data = b"{" if kind == "bad body" else json.dumps(body).encode()
    path = "/v1/nothing" if kind == "no route" else "/v1/chat/completions"
    key = "none" if kind == "no key" else server.key
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


def slope_mb_per_100k(samples: list[Sample], calls: int) -> float:
    """Of a straight line through the memory, by least squares; `calls` lie between two samples."""
    xs = [calls * place / 100_000 for place in range(len(samples))]
    ys = [sample.rss_mb for sample in samples]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    over = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return over / sum((x - mean_x) ** 2 for x in xs)


@pytest.mark.slow
async def test_what_the_server_holds_does_not_grow_with_what_it_has_done(tmp_path: Path) -> None:
    samples: list[Sample] = []
    each = CALLS // ROUNDS
    async with soaked(tmp_path / "home") as server:
        crowd, began = Crowd(server), time.monotonic()
        for number in range(ROUNDS):
            await crowd.round(each, number)
            samples.append(await server.sample())
            print(f"{each * (number + 1):>7} calls, {time.monotonic() - began:5.0f} s: {samples[-1]}")
        assert crowd.wrong == Counter()
    warm = samples[WARM_ROUNDS:]
    assert slope_mb_per_100k(warm, each) < MOST_MB_PER_100K
    for name in ("files", "threads", "tasks"):
        counts = {getattr(sample, name) for sample in warm}
        assert max(counts) - min(counts) <= 2, (name, counts)
    assert max(sample.log_bytes for sample in samples) <= MOST_LOG_BYTES
    grown = [after.rows_bytes - before.rows_bytes for before, after in pairwise(warm)]
    with Accounts.open(tmp_path / "home", Settings.load(tmp_path / "home", {}, {})) as accounts:
        assert accounts.verify() == ()
        settled = accounts.store.read("SELECT COUNT(*) FROM request WHERE outcome <> 'open'")[0][0]
        assert settled == accounts.store.read("SELECT COUNT(*) FROM request")[0][0]
        assert settled >= 0.9 * CALLS
    assert sum(grown) / (each * len(grown)) <= MOST_ROW_BYTES
