"""The server process: port, HOME, what it says, how it drains."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest
from api_server import Api, Endless, Mute, Slow, serving, talk, talker

from perilune.accounts.accounts import Accounts
from perilune.api.listen import listen, root_url
from perilune.api.serve import Server, serve
from perilune.backends.base import Backend
from perilune.backends.scripted import ScriptedBackend, scripted_entry
from perilune.errors import CheckpointError, ConfigError, HomeLocked
from perilune.settings import Settings
from perilune.store import HomeLock, home_holder

HI = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}


class Process:
    """`serve` as a task of this loop, and the address it told."""

    def __init__(self, task: asyncio.Task[None], server: Server, home: Path) -> None:
        self.task = task
        self.server = server
        self._home = home
        self._settings = Settings.load(home, {}, {})

    def auth(self) -> dict[str, str]:
        key = json.loads((self._home / "keys.json").read_text())["project_key"]
        return {"Authorization": f"Bearer {key}"}

    def outcomes(self) -> list[str]:
        """From the books that the ended process left behind."""
        with Accounts.open(self._home, self._settings) as accounts:
            assert accounts.verify() == ()
            return [row.outcome for row in accounts.usage_rows()]


@asynccontextmanager
async def process(home: Path, backend: Backend, **flags: object) -> AsyncIterator[Process]:
    async def open_model(_: Settings) -> Backend:
        return backend

    ready: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
    settings = Settings.load(home, {"port": 0} | flags, {})
    task = asyncio.create_task(serve(settings, on_ready=ready.set_result, open_model=open_model))
    await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        yield Process(task, ready.result(), home)
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(20):
            await task


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


async def test_a_signal_lets_answers_end_and_refuses_new_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with process(tmp_path, Slow(talk, chunk=3)) as running, aiohttp.ClientSession() as web:
        url = f"{running.server.base_url}/chat/completions"
        holder = home_holder(tmp_path)
        assert holder is not None and holder.address == running.server.base_url
        async with web.post(url, json=HI, headers=running.auth()) as answer:
            await answer.content.readuntil(b"\n\n")
            terminate()
            await asyncio.sleep(0.3)
            with pytest.raises(aiohttp.ClientConnectorError):
                await web.get(f"{running.server.root_url}/healthz")
            assert not running.task.done()
            rest = (await answer.read()).decode()
        assert rest.endswith("data: [DONE]\n\n")
        async with asyncio.timeout(5):
            await running.task
    assert home_holder(tmp_path) is None
    assert running.outcomes() == ["finished"]
    said = capsys.readouterr().out
    assert running.server.base_url in said and str(tmp_path / "keys.json") in said
    assert "serves scripted at" in said


async def test_a_second_signal_cuts_off_what_still_runs(tmp_path: Path) -> None:
    backend = Endless()
    async with process(tmp_path, backend) as running, aiohttp.ClientSession() as web:
        url = f"{running.server.base_url}/chat/completions"
        async with web.post(url, json=HI, headers=running.auth()) as answer:
            await answer.content.readuntil(b"\n\n")
            terminate()
            await asyncio.sleep(0.3)
            assert not running.task.done()
            terminate()
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        async with asyncio.timeout(5):
            await running.task
    assert backend.closed == 1
    assert running.outcomes() == ["aborted"]


async def test_what_outlives_the_grace_is_cut_off_and_settled(tmp_path: Path) -> None:
    backend = Endless()
    async with serving(tmp_path, backend) as api, aiohttp.ClientSession() as web:
        async with web.post(f"{api.url}/chat/completions", json=HI, headers=api.auth) as answer:
            await answer.content.readuntil(b"\n\n")
            async with asyncio.timeout(5):
                await api.server.stop(grace_s=1)
            assert backend.closed == 1 and api.rows() == ["aborted"]
            answer.close()


async def test_an_answer_not_begun_is_told_that_the_server_stops(tmp_path: Path) -> None:
    async with serving(tmp_path, Mute()) as api, aiohttp.ClientSession() as web:
        asking = asyncio.create_task(web.post(f"{api.url}/chat/completions", json=HI, headers=api.auth))
        await asyncio.sleep(0.3)
        await api.server.stop(grace_s=1)
        async with await asking as answer:
            assert (answer.status, (await answer.json())["error"]["type"]) == (503, "server_unavailable")
        assert api.rows() == ["aborted"]


async def test_a_signal_while_the_model_loads_ends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = False

    async def never(_: Settings) -> Backend:
        nonlocal ended
        try:
            await asyncio.sleep(3600)
        finally:
            ended = True
        raise AssertionError

    task = asyncio.create_task(serve(Settings.load(tmp_path, {"port": 0}, {}), open_model=never))
    await asyncio.sleep(0.2)
    terminate()
    async with asyncio.timeout(5):
        await task
    assert ended and home_holder(tmp_path) is None
    assert capsys.readouterr().out == ""


async def test_a_model_that_does_not_open_leaves_nothing_held(tmp_path: Path) -> None:
    async def broken(_: Settings) -> Backend:
        raise CheckpointError("a shard is missing")

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for _ in range(2):
        with pytest.raises(CheckpointError):
            await serve(Settings.load(tmp_path, {"port": port}, {}), open_model=broken)
    assert home_holder(tmp_path) is None


async def test_a_model_whose_price_nobody_knows_is_not_served(tmp_path: Path) -> None:
    entry = msgspec.structs.replace(scripted_entry(), price="dear")
    with pytest.raises(ConfigError, match="price of scripted: the price book has no price 'dear'"):
        async with process(tmp_path, ScriptedBackend(entry=entry)):
            pass
    assert home_holder(tmp_path) is None


async def test_a_home_in_use_is_refused(tmp_path: Path) -> None:
    with HomeLock(tmp_path, "demo"), pytest.raises(HomeLocked, match="perilune demo"):
        await serve(Settings.load(tmp_path, {"port": 0}, {}))


def test_a_taken_port_is_named_or_passed_over() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"{port} on 127.0.0.1 is taken") as caught:
            listen("127.0.0.1", port)
        assert caught.value.field == "port"
        with listen("127.0.0.1", port, any_port=True) as next_one:
            assert next_one.getsockname()[1] not in (0, port)


def test_a_wrong_host_is_named() -> None:
    for host in ("x" * 64, "203.0.113.7"):
        with pytest.raises(ConfigError) as caught:
            listen(host, 0)
        assert caught.value.field == "host"


def test_urls_are_ones_that_a_client_here_can_use() -> None:
    with listen("0.0.0.0", 0) as everywhere:
        assert root_url(everywhere) == f"http://127.0.0.1:{everywhere.getsockname()[1]}"
    if socket.has_ipv6 and Path("/proc/net/if_inet6").exists():
        with listen("::", 0) as six:
            assert root_url(six) == f"http://[::1]:{six.getsockname()[1]}"


async def test_a_server_starts_again_on_its_port(tmp_path: Path) -> None:
    async def ask(api: Api) -> int:
        async with aiohttp.ClientSession() as web:
            async with web.post(f"{api.url}/chat/completions", json=HI, headers=api.auth) as answer:
                await answer.read()
                return answer.status

    async with serving(tmp_path, talker()) as first:
        assert await ask(first) == 200
        port = int(first.root.rpartition(":")[2])
    async with serving(tmp_path, talker(), port=port) as second:
        assert await ask(second) == 200
        assert second.key == first.key


async def test_small_packets_are_not_held_back() -> None:
    """Else an answer's body waits 40 ms for the client to acknowledge its head."""
    seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("socket")
        seen.set_result(peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = listen("127.0.0.1", 0)
    async with await asyncio.start_server(connected, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await seen != 0
        writer.close()
        await writer.wait_closed()
