"""The admin door: on loopback, for admin keys, and the command line goes through it while a server runs."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from admin_server import running
from api_server import Strange

from perilune.accounts.accounts import Accounts
from perilune.api.admin import admin_doors
from perilune.api.metrics import HttpCounters
from perilune.api.serve import serve
from perilune.cli import main as cli
from perilune.errors import ConfigError
from perilune.settings import Settings
from perilune.store import home_holder


async def test_every_route_needs_an_admin_key(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as door:
        settings = Settings.load(tmp_path, {}, {})
        with Accounts.open(tmp_path / "other", settings) as accounts:
            table = admin_doors(Strange(), accounts, HttpCounters())
        assert {one.needs for one in table} == {"admin"}
        for one in table:
            if one.path.startswith("/admin/"):
                name = one.path.removeprefix("/admin/")
                assert (await door.act(name, door.keys["project_key"], one.method))[0] == 403
                assert (await door.act(name, "junk", one.method))[0] == 401
                status, _ = await door.act(name, "", one.method)
                assert status in (200, 400)


async def test_acts_over_the_door(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as door:
        status, made = await door.act("keys/create", name="ci", budget=10**9)
        assert status == 200
        chat = {"Authorization": f"Bearer {made['key']}"}
        holder = home_holder(door.home)
        assert holder is not None
        hi = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
        async with aiohttp.ClientSession() as web:
            async with web.post(f"{holder.address}/chat/completions", json=hi, headers=chat) as answer:
                assert answer.status == 200
        _, keys = await door.act("keys/list", "", "GET")
        assert [key["name"] for key in keys] == ["first admin key", "first project key", "ci"]
        assert keys[2]["spent"] > 0 and made["key"] not in json.dumps(keys)
        _, entered = await door.act("account/enter", kind="deposit", amount=5, reference="r")
        assert entered["new"] and entered["available"] == 5
        _, entered = await door.act("account/enter", kind="deposit", amount=5, reference="r")
        assert not entered["new"] and entered["available"] == 5
        _, proof = await door.act("ledger/verify")
        assert (proof["wrong"], proof["calls"], proof["entries"]) == ([], 1, 1)
        _, lines = await door.act("audit/list", "", "GET")
        assert lines[-1]["actor"] == "key 1 (first admin key)" and lines[-1]["act"] == "keys.create"
        _, models = await door.act("backend/models", "", "GET")
        assert models[0]["id"] == "scripted" and models[0]["price"] == "kimi-k2.6"
        assert (await door.act("backend/ready", "", "GET"))[0] == 200


@pytest.mark.parametrize(
    ("name", "fields", "status", "words"),
    [
        ("keys/create", {}, 400, "name"),
        ("keys/create", {"name": "x", "scopes": ["root"]}, 400, "scopes"),
        ("keys/create", {"name": "x", "colour": 1}, 400, "`colour` (its fields are name, scopes, project"),
        ("keys/create", {"name": "x", "expires_ms": 1}, 400, "expires_ms: is over already"),
        ("keys/list", {"colour": 1}, 400, "it takes no fields"),
        ("account/enter", {"kind": "deposit", "amount": 1 << 61}, 400, "more than the books can hold"),
        ("ledger/usage", {"since": "2026-12-01", "until": "2026-11-01"}, 400, "until: is not after `since`"),
        ("keys/create", {"name": "x", "budget": "much"}, 400, "budget"),
        ("keys/create", {"name": "x", "budget": -1}, 400, "budget"),
        ("keys/disable", {"key": 99}, 404, "no key 99"),
        ("account/enter", {"kind": "gift", "amount": 1}, 400, "use correction, deposit, voucher"),
        ("account/tier", {"organisation": 1, "tier": "gold"}, 400, "no rate tier"),
        ("ledger/usage", {"since": "yesterday"}, 400, "since"),
        ("nothing/here", {}, 404, "no such route"),
    ],
)
async def test_a_wrong_act_is_told_what_is_wrong(
    tmp_path: Path, name: str, fields: dict[str, Any], status: int, words: str
) -> None:
    async with running(tmp_path / "home") as door:
        found, told = await door.act(name, **fields)
        assert words in told["error"]["message"]
        assert found == status


async def test_the_command_line_goes_through_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERILUNE_HOME", str(tmp_path / "home"))
    async with running(tmp_path / "home") as door:

        async def command(*words: str) -> tuple[int, str]:
            code = await asyncio.to_thread(cli.main, words)
            said = capsys.readouterr()
            return code, said.out + said.err

        code, secret = await command("keys", "create", "ci")
        assert code == 0 and secret.splitlines()[-1].startswith("plk_")
        assert (await command("account", "topup", "2.50", "--reference", "r"))[0] == 0
        _, lines = await door.act("audit/list")
        assert {line["actor"] for line in lines} == {"key 1 (first admin key)"}
        code, said = await command("keys", "disable", "99")
        assert code == 2 and "no key 99" in said
        assert "3 calls" not in (await command("ledger", "verify"))[1]


async def test_the_door_is_closed_by_default_and_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"{port} on 127.0.0.1 is taken") as caught:
            await serve(Settings.load(tmp_path, {"port": 0, "admin_port": port}, {}))
        assert caught.value.field == "admin_port" and "--admin-port" in str(caught.value)
    assert home_holder(tmp_path) is None
    assert Settings(home=tmp_path).admin_port == 0
