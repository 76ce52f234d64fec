"""Under which names the doors answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from admin_server import running
from api_server import serving, talker
from raw_http import ask, bearer

from perilune.errors import ConfigError

FOREIGN = (
    None,
    "",
    "evil.example",
    "api.example.org.evil.example",
    "xapi.example.org",
    "api.example.org@evil",
    "evil/api.example.org",
    "api.example.org:80:80",
    "api.example.org:x",
    "api.example.org\\",
    "127.0.0.1",
)
OURS = ("api.example.org", "API.Example.org:443", "api.example.org.", "[2001:db8::1]:8642")


async def test_the_api_answers_under_the_names_that_are_set(tmp_path: Path) -> None:
    async with serving(tmp_path, talker(), allowed_hosts="api.example.org, [2001:DB8::1]") as api:
        port = int(api.root.rpartition(":")[2])
        for host in OURS:
            assert (await ask(port, "GET /v1/models", bearer(api.key), host=host)).status == 200, host
        for host in FOREIGN:
            for line, headers in (
                ("GET /v1/models", (bearer(api.key),)),
                ("POST /v1/chat/completions", (bearer(api.key),)),
                ("GET /openapi.json", ()),
                ("GET /nowhere", ()),
            ):
                answer = await ask(port, line, *headers, host=host)
                assert answer.status == 421, (host, line, answer)
                assert answer.kind == "invalid_request_error" and b"allowed_hosts" in answer.body
            for path in ("/healthz", "/readyz"):
                assert (await ask(port, f"GET {path}", host=host)).status == 200
        two = await ask(port, "GET /v1/models", bearer(api.key), "Host: evil", host="api.example.org")
        assert two.status in (400, 421)
        assert api.rows() == []


async def test_without_names_it_answers_under_all(tmp_path: Path) -> None:
    async with serving(tmp_path, talker()) as api:
        port = int(api.root.rpartition(":")[2])
        for host in (*OURS, *FOREIGN):
            assert (await ask(port, "GET /v1/models", bearer(api.key), host=host)).status == 200, host


async def test_the_admin_door_answers_under_this_machine_s_own(tmp_path: Path) -> None:
    """A web page can give its own name to 127.0.0.1, and would then be read by the browser as its own."""
    async with running(tmp_path / "home") as door:
        port = int(door.url.split(":")[2].partition("/")[0])
        key = bearer(door.keys["admin_key"])
        for host in (f"127.0.0.1:{port}", "localhost", "LOCALHOST:1", f"[::1]:{port}"):
            assert (await ask(port, "GET /admin/keys/list", key, host=host)).status == 200, host
        for host in (None, "evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.1"):
            assert (await ask(port, "GET /admin/keys/list", key, host=host)).status == 421, host


@pytest.mark.parametrize("names", ["api.example.org:443", "https://api.example.org", "a b", "*", "-x", "::1"])
async def test_what_is_no_name_is_refused(tmp_path: Path, names: str) -> None:
    with pytest.raises(ConfigError, match="allowed_hosts"):
        async with serving(tmp_path, talker(), allowed_hosts=names):
            raise AssertionError("started")
