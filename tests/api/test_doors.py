"""No way into any route of the two tables without its key, whatever key, Host, path or method is sent.

The tables themselves are gone through, so a route that is added is tried as well.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from api_server import serving, talker
from raw_http import ask, bearer

from perilune.accounts.keys import new_secret
from perilune.api import doors as doors_file
from perilune.api.admin import admin_doors
from perilune.api.app import doors
from perilune.api.doors import Door
from perilune.api.listen import listen
from perilune.api.metrics import HttpCounters
from perilune.api.serve import AdminServer
from perilune.api.strangers import Strangers
from perilune.backends.router import Router
from perilune.backends.scripted import ScriptedBackend
from perilune.settings import Settings

OPEN = {"/healthz", "/readyz", "/openapi.json", "/docs"}
"""Of the main door, as docs/api.md says. The admin door has none."""
OF_AN_OWNER = {"/v1/files/{id}", "/v1/files/{id}/content"}
"""Routes whose id names what somebody owns."""
OF_ALL = {"/v1/models/{id:path}"}


@dataclass
class Site:
    """Both doors of one HOME, listening."""

    main: int
    admin: int
    main_table: tuple[Door, ...]
    admin_table: tuple[Door, ...]
    key: str
    admin_key: str
    changed: Callable[[], tuple[object, ...]]
    """What a request that got through would have changed."""
    refused: dict[str, str] = field(default_factory=dict)
    """Name -> a key that opens nothing."""

    def rows(self) -> Iterator[tuple[int, Door, str]]:
        """Port, row and a path that fits it, of every row that wants a key."""
        for port, table in ((self.main, self.main_table), (self.admin, self.admin_table)):
            for door in table:
                if door.needs != "nothing":
                    yield port, door, door.path.replace("{id:path}", "scripted").replace("{id}", "file-1")

    def right(self, door: Door) -> str:
        return self.admin_key if door.needs == "admin" else self.key

    def wrong_scope(self, door: Door) -> str:
        return self.key if door.needs == "admin" else self.admin_key


@asynccontextmanager
async def opened(home: Path) -> AsyncIterator[Site]:
    backend = Counted(talker())
    settings = Settings.load(home, {}, {})
    async with serving(home, backend) as api:
        door = AdminServer(settings, Router([backend]), api.accounts, api.server)
        listener = listen("127.0.0.1", 0)
        await door.start(listener)
        project = api.accounts.organisations.create_project(1, "other", actor="test")
        other = api.accounts.keyring.create("other", ("chat",), project_id=project, actor="test")
        revoked = api.accounts.create_key("revoked", ("admin", "chat"))
        api.accounts.disable_key(api.accounts.authenticate(revoked, "chat").key_id)

        def changed() -> tuple[object, ...]:
            files = sorted(str(path) for path in (home / "files").glob("**/*"))
            audit = api.accounts.store.read("SELECT MAX(id) FROM audit")
            return backend.asked, api.rows(), files, audit

        try:
            yield Site(
                main=int(api.root.rpartition(":")[2]),
                admin=listener.getsockname()[1],
                main_table=doors(settings, backend, api.accounts),
                admin_table=admin_doors(Router([backend]), api.accounts, HttpCounters()),
                key=api.key,
                admin_key=api.admin_key,
                changed=changed,
                refused={
                    "unknown": new_secret(),
                    "revoked": revoked,
                    "expired": api.accounts.create_key("expired", ("admin", "chat"), expires_ms=1),
                    "misspelt": api.key[:-1] + ("a" if api.key[-1] != "a" else "b"),
                    "empty": "",
                    "two": f"{api.key} {api.key}",
                    "other project's": other,
                },
            )
        finally:
            await door.stop(grace_s=1)


class Counted(ScriptedBackend):
    """Counts the calls that reach the model."""

    def __init__(self, inner: ScriptedBackend) -> None:
        self.__dict__ |= inner.__dict__
        self.asked = 0

    def stream(self, request: Any) -> Any:
        self.asked += 1
        return super().stream(request)


@pytest.fixture(autouse=True)
def many_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the limit on wrong keys would answer in the place of what is tried here."""
    monkeypatch.setattr(doors_file, "Strangers", lambda: Strangers(10**9))


async def test_the_tables_are_what_is_tried(tmp_path: Path) -> None:
    async with opened(tmp_path / "home") as site:
        assert {door.path for door in site.main_table if door.needs == "nothing"} == OPEN
        assert all(door.needs == "admin" for door in site.admin_table)
        named = {door.path for door in (*site.main_table, *site.admin_table) if "{" in door.path}
        assert named == OF_AN_OWNER | OF_ALL  # a new one has to say whose its objects are
        assert len(list(site.rows())) > 30


async def test_right_keys_get_through(tmp_path: Path) -> None:
    """What the other tests here send is refused for the one thing that they change in it."""
    async with opened(tmp_path / "home") as site:
        for port, door, path in site.rows():
            answer = await ask(port, f"{door.method} {path}", bearer(site.right(door)))
            assert answer.status in (200, 400, 404), (door, answer)
        for path in OPEN:
            assert (await ask(site.main, f"GET {path}")).status == 200


async def test_no_route_without_its_key(tmp_path: Path) -> None:
    async with opened(tmp_path / "home") as site:
        before = site.changed()
        refused = {name: key for name, key in site.refused.items() if name != "other project's"}
        for port, door, path in site.rows():
            line = f"{door.method} {path}"
            for name, headers in {
                "none": (),
                "another scheme": (f"Authorization: Basic {site.right(door)}",),
                "another header": (f"X-Api-Key: {site.right(door)}", f"Cookie: key={site.right(door)}"),
                "in the query": (),
                **{name: (bearer(key),) for name, key in refused.items()},
            }.items():
                asked = f"{line}?key={site.right(door)}" if name == "in the query" else line
                answer = await ask(port, asked, *headers)
                assert (answer.status, answer.kind) == (401, "invalid_authentication_error"), (line, name)
            answer = await ask(port, line, bearer(site.wrong_scope(door)))
            assert (answer.status, answer.kind) == (403, "permission_denied_error"), line
        assert site.changed() == before


async def test_no_object_of_another_owner(tmp_path: Path) -> None:
    async with opened(tmp_path / "home") as site:
        form = (
            b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfile-extract\r\n'
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nsecret\r\n--x--\r\n'
        )
        kind = "Content-Type: multipart/form-data; boundary=x"
        reader, writer = await asyncio.open_connection("127.0.0.1", site.main)
        head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\n{bearer(site.key)}\r\n{kind}\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(form)}\r\n\r\n".encode() + form)
        made = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])["id"]
        writer.close()
        before = site.changed()
        for port, door, _ in site.rows():
            if door.path not in OF_AN_OWNER:
                continue
            line = f"{door.method} {door.path.replace('{id}', made)}"
            answer = await ask(port, line, bearer(site.refused["other project's"]))
            assert (answer.status, answer.kind) == (404, "resource_not_found_error"), line
            assert b"secret" not in answer.body
        answer = await ask(site.main, "GET /v1/files", bearer(site.refused["other project's"]))
        assert json.loads(answer.body)["data"] == []
        assert site.changed() == before
        line = f"GET /v1/files/{made}/content"
        assert (await ask(site.main, line, bearer(site.key))).body == b"secret"


HOSTS = (
    None,
    "",
    "healthz",
    "localhost/healthz?",
    "localhost/healthz#",
    "x/healthz",
    "127.0.0.1:1@x/healthz",
    "x\\healthz",
    "[::1]/healthz",
    "x:80:80",
    "a" * 300,
    "\xff",
)


async def test_no_host_opens_a_route(tmp_path: Path) -> None:
    async with opened(tmp_path / "home") as site:
        before = site.changed()
        for port, door, path in site.rows():
            for host in HOSTS:
                for headers in ((), (bearer(site.wrong_scope(door)),), ("X-Forwarded-Host: x/healthz",)):
                    answer = await ask(port, f"{door.method} {path}", *headers, host=host)
                    assert answer.status in (400, 401, 403, 421), (path, host, answer)
        assert site.changed() == before


def odd_targets(path: str) -> Iterator[str]:
    """Spellings of a path that some router, proxy or check somewhere takes for it, or for an open one."""
    yield f"/{path}"
    yield f"{path}/"
    yield f"{path}/."
    yield f"{path}//"
    yield path.replace("/", "//")
    yield f"/v1/..{path}"
    yield f"/healthz/..{path}"
    yield f"/healthz/%2e%2e{path}"
    yield f"/healthz/..%2f{path[1:]}"
    yield f"/healthz;{path}"
    yield f"/healthz%00{path}"
    yield f"/.{path}"
    yield f"/%2e{path}"
    yield f"/%2e%2e{path}"
    yield path.replace("/", "%2f")
    yield f"/{path[1:].replace('/', '%2F')}"
    yield f"/{path[1:].replace('/', chr(92))}"
    yield f"{path[:-1]}%{ord(path[-1]):02x}"
    yield f"{path};/healthz"
    yield f"{path}?/healthz"
    yield f"{path}#/healthz"
    yield f"{path}%20"
    yield f"{path}%00"
    yield f"{path}.json"
    yield path.upper()
    yield f"http://localhost{path}"
    yield f"http://localhost/healthz/..{path}"
    yield f"http://x@y{path}"
    yield f"//healthz{path}"


async def test_no_spelling_of_a_path_opens_a_route(tmp_path: Path) -> None:
    async with opened(tmp_path / "home") as site:
        before = site.changed()
        met: set[int] = set()
        for port, door, path in {
            (port, path): (port, door, path) for port, door, path in site.rows()
        }.values():
            for target in odd_targets(path):
                for headers in ((), (bearer(site.wrong_scope(door)),)):
                    answer = await ask(port, f"{door.method} {target}", *headers)
                    assert answer.status in (400, 401, 403, 404, 405), (target, headers, answer)
                    met.add(answer.status)
        assert met >= {401, 403, 404}
        assert site.changed() == before


async def test_no_method_opens_a_route(tmp_path: Path) -> None:
    async with opened(tmp_path / "home") as site:
        before = site.changed()
        for port, door, path in site.rows():
            if door.path in OF_AN_OWNER and door.method != "GET":
                continue
            for method in ("HEAD", "PUT", "PATCH", "OPTIONS", "TRACE", "get", "post", "X", "PROPFIND"):
                answer = await ask(port, f"{method} {path}", f"X-HTTP-Method-Override: {door.method}")
                assert answer.status in (400, 401, 404, 405), (method, path, answer)
        assert site.changed() == before
