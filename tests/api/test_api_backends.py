"""Operators and the backends of a running server: list, drain, enable, and what /metrics says of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from admin_server import Door, open_talker, running
from api_server import Api, Endless, serving, talker

from perilune.backends.choose import open_backend
from perilune.cli import main as cli
from perilune.store import home_holder

NAMES = ("one", "two", "three")


@asynccontextmanager
async def fleet(folder: Path, **models: Any) -> AsyncIterator[tuple[Door, dict[str, Api]]]:
    """A server over three others, with its admin door."""
    async with AsyncExitStack() as stack:
        far = {
            name: await stack.enter_async_context(serving(folder / name, models.get(name) or talker()))
            for name in NAMES
        }
        home = folder / "home"
        home.mkdir()
        tables = [
            f'[[backends]]\nname = "{name}"\nurl = "{api.url}"\nkey = "{api.key}"\n'
            'serves = "m"\nregion = "eu"\n'
            for name, api in far.items()
        ]
        (home / "perilune.toml").write_text("model_retries = 0\n" + "\n".join(tables))
        door = await stack.enter_async_context(running(home, open_backend))
        yield door, far


class Client:
    def __init__(self, door: Door, web: aiohttp.ClientSession) -> None:
        holder = home_holder(door.home)
        assert holder is not None
        self.address = holder.address
        self.root = holder.address.removesuffix("/v1")
        self.keys = door.keys
        self._web = web

    async def ask(self, text: str) -> int:
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        auth = {"Authorization": f"Bearer {self.keys['project_key']}"}
        url = f"{self.address}/chat/completions"
        async with self._web.post(url, json=body, headers=auth) as answer:
            await answer.read()
            return answer.status

    async def metrics(self) -> str:
        auth = {"Authorization": f"Bearer {self.keys['admin_key']}"}
        async with self._web.get(self.root + "/metrics", headers=auth) as answer:
            assert answer.status == 200
            return await answer.text()

    async def ready(self) -> int:
        async with self._web.get(self.root + "/readyz") as answer:
            return answer.status


def states(found: list[dict[str, Any]]) -> dict[str, str]:
    return {one["name"]: "drained" if one["drained"] else one["breaker"] for one in found}


def calls(far: dict[str, Api]) -> dict[str, int]:
    return {name: len(api.accounts.usage_rows()) for name, api in far.items()}


async def test_a_drained_backend_gets_no_new_calls_until_it_is_enabled(tmp_path: Path) -> None:
    async with fleet(tmp_path) as (door, far), aiohttp.ClientSession() as web:
        client = Client(door, web)
        _, found = await door.act("backend/list", "", "GET")
        assert [(one["name"], one["model"], one["kind"], one["region"]) for one in found] == [
            (name, "m", "upstream", "eu") for name in NAMES
        ]
        texts = [f"conversation {number}" for number in range(30)]
        for text in texts:
            assert await client.ask(text) == 200
        first = calls(far)
        assert all(first.values()) and sum(first.values()) == 30

        status, (one,) = await door.act("backend/drain", backend="two")
        assert (status, one["name"], one["drained"]) == (200, "two", True)
        for text in texts:
            assert await client.ask(text) == 200
        drained = calls(far)
        assert drained["two"] == first["two"] and sum(drained.values()) == 60
        assert 'perilune_backend_state{backend="two",model="m",state="drained"} 1' in await client.metrics()

        await door.act("backend/enable", backend="two")
        for text in texts:
            assert await client.ask(text) == 200
        assert calls(far)["two"] == 2 * first["two"]  # its own conversations came back, and no others
        _, lines = await door.act("audit/list", "", "GET")
        assert [(line["act"], line["detail"]) for line in lines[:2]] == [
            ("backend.enable", {"backend": "two"}),
            ("backend.drain", {"backend": "two"}),
        ]
        assert lines[0]["actor"] == "key 1 (first admin key)"


async def test_calls_under_way_end_well_at_a_drained_backend(tmp_path: Path) -> None:
    endless = {name: Endless() for name in NAMES}
    async with fleet(tmp_path, **endless) as (door, _), aiohttp.ClientSession() as web:
        client = Client(door, web)
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "go"}]}
        auth = {"Authorization": f"Bearer {door.keys['project_key']}"}
        async with web.post(f"{client.address}/chat/completions", json=body, headers=auth) as answer:
            await answer.content.readuntil(b"\n\n")
            _, found = await door.act("backend/list")
            (busy,) = [one["name"] for one in found if one["running"] == 1]
            running_now = f'perilune_backend_calls_running{{backend="{busy}",model="m"}} 1'
            assert running_now in await client.metrics()
            await door.act("backend/drain", backend=busy)
            for _ in range(5):
                assert b"on " in await answer.content.readuntil(b"\n\n")
            answer.close()
        async with asyncio.timeout(10):
            while any(one["running"] for one in (await door.act("backend/list"))[1]):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_with_all_drained_calls_are_told_and_nothing_is_charged(tmp_path: Path) -> None:
    async with fleet(tmp_path) as (door, far), aiohttp.ClientSession() as web:
        client = Client(door, web)
        for name in NAMES:
            await door.act("backend/drain", backend=name)
        assert (await client.ask("hi"), await client.ready()) == (503, 503)
        assert calls(far) == {"one": 0, "two": 0, "three": 0}
        _, (row, *_) = await door.act("ledger/calls")
        assert (row["outcome"], row["charge"]) == ("failed", 0)
        await door.act("backend/enable", backend="one")
        assert (await client.ask("hi"), await client.ready()) == (200, 200)


async def test_a_broken_backend_is_seen_to_be_open(tmp_path: Path) -> None:
    async with fleet(tmp_path) as (door, far), aiohttp.ClientSession() as web:
        client = Client(door, web)
        await far["two"].server.stop(grace_s=0)
        for number in range(40):
            assert await client.ask(f"conversation {number}") == 200
        _, found = await door.act("backend/list")
        assert states(found) == {"one": "closed", "two": "open", "three": "closed"}
        assert "nothing answers at" in next(one["error"] for one in found if one["name"] == "two")
        lines = (await client.metrics()).splitlines()
        assert 'perilune_backend_state{backend="two",model="m",state="open"} 1' in lines
        assert 'perilune_backend_state{backend="two",model="m",state="closed"} 0' in lines
        assert 'perilune_backend_state{backend="one",model="m",state="closed"} 1' in lines


async def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERILUNE_HOME", str(tmp_path / "home"))

    async def command(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = await asyncio.to_thread(cli.main, words)
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = await command("backends", "list")
    assert code == 2 and "no server owns" in said and "--admin-port" in said
    async with fleet(tmp_path):
        code, said = await command("backends", "list")
        assert code == 0
        assert [line.split()[:5] for line in said.splitlines()[-3:]] == [
            [name, "m", "upstream", "closed", "0"] for name in NAMES
        ]
        code, said = await command("backends", "drain", "three")
        assert code == 0 and "drained" in said
        code, said = await command("backends", "list", "--json")
        assert states(json.loads(said)) == {"one": "closed", "two": "closed", "three": "drained"}
        code, said = await command("backends", "drain", "four")
        assert code == 2 and "no backend 'four'" in said


async def test_a_single_backend_is_listed_and_cannot_be_drained(tmp_path: Path) -> None:
    async with running(tmp_path / "home", open_talker) as door:
        _, (one,) = await door.act("backend/list", "", "GET")
        assert (one["name"], one["model"], one["running"]) == ("scripted", "scripted", None)
        status, told = await door.act("backend/drain", backend="scripted")
        assert status == 404 and "no backend 'scripted'" in told["error"]["message"]
