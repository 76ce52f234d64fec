"""What goes wrong at the door: bad bodies, wrong keys, clients that leave, backends that fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from api_server import Api, Cut, Endless, Failing, Mute, Strange, serving, talker

from perilune.api import http
from perilune.api.app import doors
from perilune.backends.base import ModelEntry
from perilune.errors import (
    BackendFiltered,
    BackendOutOfQuota,
    BackendRateLimited,
    BackendRefused,
    BackendUnreachable,
    ContextTooLong,
    EngineGone,
    InsufficientBalance,
    PeriluneError,
)
from perilune.settings import Settings

HI = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"


@pytest.fixture
async def web() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def send(
    web: aiohttp.ClientSession, api: Api, method: str = "POST", path: str = CHAT, **options: Any
) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON and headers (lower case) of one request with a good key."""
    options.setdefault("headers", api.auth)
    async with web.request(method, api.root + path, **options) as answer:
        body = await answer.read()
        headers = {name.lower(): value for name, value in answer.headers.items()}
        assert headers["x-request-id"] == headers["msh-request-id"] == headers["request-id"]
        return answer.status, json.loads(body) if body else None, headers


# ---- keys


async def test_every_route_says_whom_it_lets_in(tmp_path: Path, web: aiohttp.ClientSession) -> None:
    async with serving(tmp_path, talker()) as api:
        table = doors(Settings.load(tmp_path, {}, {}), Strange(), api.accounts)
        guarded = [door for door in table if door.needs != "nothing"]
        assert {door.path for door in table} - {door.path for door in guarded} == {
            "/healthz", "/readyz", "/openapi.json", "/docs",
        }  # fmt: skip
        for door in guarded:
            path = door.path.replace("{id:path}", "scripted")
            for headers in (
                {},
                {"Authorization": "Bearer"},
                {"Authorization": f"Basic {api.key}"},
                {"Authorization": f"Bearer {api.key}x"},
                {"Authorization": "Bearer \xff☾"},
                {"Authorization": "Bearer ", "Host": "healthz"},
                {"X-Api-Key": api.key},
            ):
                status, told, answered = await send(web, api, door.method, path, headers=headers, json=HI)
                assert (status, told["error"]["type"]) == (401, "invalid_authentication_error")
                assert answered["www-authenticate"] == "Bearer"
                assert api.key not in json.dumps(told)
            wrong_key = api.admin_key if door.needs == "chat" else api.key
            wrong = {"Authorization": f"Bearer {wrong_key}"}
            status, told, _ = await send(web, api, door.method, path, headers=wrong, json=HI)
            assert (status, told["error"]["type"]) == (403, "permission_denied_error")
        assert api.rows() == []


async def test_a_disabled_key_is_refused_at_once(tmp_path: Path, web: aiohttp.ClientSession) -> None:
    async with serving(tmp_path, talker()) as api:
        secret = api.accounts.create_key("short-lived")
        headers = {"Authorization": f"bearer  {secret} "}
        assert (await send(web, api, json=HI, headers=headers))[0] == 200
        api.accounts.disable_key(api.accounts.authenticate(secret, "chat").key_id)
        assert (await send(web, api, json=HI, headers=headers))[0] == 401


async def test_a_key_over_its_budget_is_told_so(tmp_path: Path, web: aiohttp.ClientSession) -> None:
    async with serving(tmp_path, talker()) as api:
        headers = {"Authorization": f"Bearer {api.accounts.create_key('poor', budget=1)}"}
        status, told, _ = await send(web, api, json=HI, headers=headers)
        assert (status, told["error"]["type"]) == (429, "rate_limit_reached_error")


# ---- bad requests


@pytest.mark.parametrize("stream", [True, False])
async def test_bad_bodies_name_the_field_and_cost_nothing(
    tmp_path: Path, web: aiohttp.ClientSession, stream: bool
) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"messages": []}, "messages must not be empty"),
        ({"model": None}, "model"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"n": 2}, "only 1 is allowed"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"stop": ["x" * 33]}, "must not be longer than 32"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": "data:image/png;base64,AA=="}]}]}, "takes no images"),
    ]  # fmt: skip
    async with serving(tmp_path, talker()) as api:
        for fields, words in bad:
            status, told, _ = await send(web, api, json=HI | {"stream": stream} | fields)
            assert status == 400 and words in told["error"]["message"], (fields, told)
            assert isinstance(told["error"]["type"], str)
        talk = [*HI["messages"], {"role": "assistant", "content": "x"}, {"role": "user", "content": "X"}]
        for sign, words in (("a\0b", "holds a NUL"), ("\ud83c", "surrogate")):
            body = json.dumps(HI | {"stream": stream, "messages": talk}).replace('"X"', json.dumps(sign))
            headers = api.auth | {"Content-Type": http.JSON.decode()}
            status, told, _ = await send(web, api, data=body.encode(), headers=headers)
            assert status == 400 and "messages[2].content: " in told["error"]["message"], told
            assert words in told["error"]["message"] and "(" in told["error"]["message"]
        for body in (b"", b"{", b"[]", b"\xff", b"null", b"[" * 200_000):
            status, told, _ = await send(
                web, api, data=body, headers=api.auth | {"Content-Type": http.JSON.decode()}
            )
            assert status == 400 and told["error"]["type"] == "invalid_request_error", body[:9]
        assert api.rows() == []


async def test_unknown_routes_and_methods(tmp_path: Path, web: aiohttp.ClientSession) -> None:
    async with serving(tmp_path, talker()) as api:
        for path in ("/", "/v1", "/v1/chat/completions/", "/v1/embeddings", "/v1//models", "/doc"):
            status, told, _ = await send(web, api, "POST", path, json=HI, allow_redirects=False)
            assert (status, told["error"]["type"]) == (404, "resource_not_found_error"), path
            assert "docs/api.md" in told["error"]["message"]
        status, told, headers = await send(web, api, "GET", CHAT)
        assert (status, headers["allow"]) == (405, "POST") and "(use POST)" in told["error"]["message"]
        assert (await send(web, api, "HEAD", "/v1/models"))[0] == 200
        _, _, headers = await send(web, api, "PUT", "/v1/files/file-1")
        assert headers["allow"] == "DELETE, GET, HEAD"  # of all routes of the path


async def test_other_content_types_are_refused(tmp_path: Path, web: aiohttp.ClientSession) -> None:
    async with serving(tmp_path, talker()) as api:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            headers = api.auth | {"Content-Type": kind}
            status, told, _ = await send(web, api, data=json.dumps(HI).encode(), headers=headers)
            assert status == 415 and "send application/json" in told["error"]["message"]
        headers = api.auth | {"Content-Type": "application/json; charset=utf-8"}
        assert (await send(web, api, data=json.dumps(HI).encode(), headers=headers))[0] == 200


async def test_a_huge_body_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, talker()) as api:
        for length in (f"Content-Length: {http.MAX_BODY_BYTES + 1}", "Transfer-Encoding: chunked"):
            host, port = api.root.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\n{length}\r\n\r\n"
            writer.write(head.encode())
            if "chunked" in length:
                size = http.MAX_BODY_BYTES // 4
                for _ in range(5):
                    writer.write(b"%x\r\n" % size + bytes(size) + b"\r\n")
                    await asyncio.sleep(0)
            status = await asyncio.wait_for(reader.readline(), 20)
            assert status.split()[1] == b"413"
            writer.transport.abort()


async def test_a_body_that_dawdles_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_S", 0.1)
    async with serving(tmp_path, talker()) as api:
        host, port = api.root.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\n"
        writer.write(f"{head}Content-Length: 9\r\n\r\n{{".encode())
        answer = await asyncio.wait_for(reader.read(), 20)  # to the end: the connection is closed
        writer.close()
        assert answer.split()[1] == b"408"
        assert b"invalid_request_error" in answer
        assert api.rows() == []


# ---- clients that leave


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  the condition lies in the database
            await asyncio.sleep(0.01)


async def test_leaving_a_stream_ends_the_call_and_settles_it(
    tmp_path: Path, web: aiohttp.ClientSession
) -> None:
    backend = Endless()
    async with serving(tmp_path, backend) as api:
        async with web.post(api.root + CHAT, json=HI | {"stream": True}, headers=api.auth) as answer:
            async for line in answer.content:
                if b"on " in line:
                    break
            answer.close()
        await until(lambda: backend.closed == 1)
        await until(lambda: api.rows() == ["aborted"])
        row = api.accounts.usage_rows()[0]
        assert row.estimated and row.uncached == 7 and row.output > 0 and row.charge > 0


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_before_the_first_word_ends_the_call_too(
    tmp_path: Path, web: aiohttp.ClientSession, stream: bool
) -> None:
    backend = Mute()
    async with serving(tmp_path, backend) as api:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await send(web, api, json=HI | {"stream": stream})
        await until(lambda: backend.closed == 1)
        await until(lambda: api.rows() == ["aborted"])


async def test_leaving_in_the_middle_of_the_body_costs_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, talker()) as api:
        host, port = api.root.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\n"
        writer.write(head.encode() + b'Content-Length: 99\r\n\r\n{"model"')
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.05)
        assert api.rows() == []


# ---- backends that fail


KINDS = {
    BackendUnreachable: "server_unavailable",
    EngineGone: "server_unavailable",
    ContextTooLong: "invalid_request_error",
    BackendRateLimited: "engine_overloaded_error",
    BackendOutOfQuota: "exceeded_current_quota_error",
    BackendFiltered: "content_filter",
    PeriluneError: "server_error",
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        (BackendUnreachable("no route"), 503, None),
        (BackendRateLimited("busy", retry_after_s=2.4), 429, ("retry-after", "3")),
        (BackendRateLimited("busy"), 429, ("retry-after", "1")),
        (BackendOutOfQuota("used up"), 429, ("x-should-retry", "false")),
        (BackendFiltered("high risk"), 400, None),
        (PeriluneError("a defect"), 500, None),
        (InsufficientBalance("broke"), 429, ("x-should-retry", "false")),
        (ContextTooLong("too long"), 400, None),
        (EngineGone("died"), 503, None),
    ],
)
async def test_an_error_before_the_first_word_has_its_status(
    tmp_path: Path, web: aiohttp.ClientSession, stream: bool, error: Any, status: int, header: Any
) -> None:
    async with serving(tmp_path, Failing(error, 0)) as api:
        got, told, headers = await send(web, api, json=HI | {"stream": stream})
        kind = KINDS.get(type(error), error.code)
        assert (got, told["error"]["type"]) == (status, kind)
        assert error.message in told["error"]["message"]
        assert header is None or headers[header[0]] == header[1]
        assert api.rows() == ["failed"] and api.accounts.usage_rows()[0].charge == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_who_got_no_answer_does_not_pay(
    tmp_path: Path, web: aiohttp.ClientSession, stream: bool
) -> None:
    """The client is told to send the call again: it pays for what it has seen."""
    async with serving(tmp_path, Failing(EngineGone("died"), 2)) as api:
        async with web.post(api.root + CHAT, json=HI | {"stream": stream}, headers=api.auth) as answer:
            assert answer.status == (200 if stream else 503)
            await answer.read()
        (row,) = api.accounts.usage_rows()
        assert (row.outcome, row.estimated, row.charge > 0) == ("failed", stream, stream)


async def test_where_the_models_run_is_told_to_the_log_alone(
    tmp_path: Path, web: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    url = "http://10.0.0.11:8000/v1"
    for error, said in (
        (
            BackendUnreachable(f"nothing answers at {url}: refused", mend="try later"),
            "at the endpoint: refused",
        ),
        (BackendUnreachable(f"{url} was silent"), "the endpoint was silent"),
        (BackendUnreachable("nothing: ('10.0.0.11', 8000)"), "nothing: the endpoint"),
        (BackendUnreachable("there is no host 10.0.0.11"), "its host is not known"),
        (BackendRefused("no such model", mend=f"check the URL {url}"), "check the URL of the endpoint)"),
    ):
        async with serving(tmp_path / said.partition(" ")[0], Failing(error, 0)) as api:
            _, told, _ = await send(web, api, json=HI)
            assert said in told["error"]["message"] and "10.0.0.11" not in json.dumps(told)
    assert caplog.text.count("10.0.0.11") >= 4


async def test_our_own_defects_are_not_told_to_clients(
    tmp_path: Path, web: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path, Failing(ZeroDivisionError("secret detail"), 0)) as api:
        status, told, _ = await send(web, api, json=HI)
        assert status == 500 and "secret detail" not in json.dumps(told)
        assert "secret detail" in caplog.text


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (Failing(EngineGone("the engine died"), 2), "the engine died"),
        (Failing(ZeroDivisionError("secret"), 2), "something went wrong here"),
        (Cut(), "ended before it was complete"),
    ],
)
async def test_an_error_in_a_stream_is_its_last_event(
    tmp_path: Path, web: aiohttp.ClientSession, backend: Any, words: str
) -> None:
    async with serving(tmp_path, backend) as api:
        async with web.post(api.root + CHAT, json=HI | {"stream": True}, headers=api.auth) as answer:
            assert answer.status == 200 and answer.content_type == "text/event-stream"
            text = (await answer.read()).decode()
        frames = text.strip().split("\n\n")
        assert words in json.loads(frames[-1].removeprefix("data: "))["error"]["message"]
        assert "[DONE]" not in text and "secret" not in text
        assert api.rows() == ["failed"]


async def test_a_cut_answer_is_never_called_whole(tmp_path: Path, web: aiohttp.ClientSession) -> None:
    async with serving(tmp_path, Cut()) as api:
        status, told, _ = await send(web, api, json=HI)
        assert (status, told["error"]["type"]) == (502, "backend_interrupted")


async def test_the_first_word_leaves_before_the_second_is_made(
    tmp_path: Path, web: aiohttp.ClientSession
) -> None:
    async with serving(tmp_path, Endless()) as api:
        async with web.post(api.root + CHAT, json=HI | {"stream": True}, headers=api.auth) as answer:
            assert answer.headers["cache-control"] == "no-cache, no-transform"
            assert answer.headers["x-accel-buffering"] == "no"
            assert "content-encoding" not in answer.headers
            async with asyncio.timeout(5):
                first = await answer.content.readuntil(b"\n\n")
            assert b'"role":"assistant"' in first
            answer.close()


# ---- health


class Down(Strange):
    async def models(self) -> tuple[ModelEntry, ...]:
        raise EngineGone("pid 4711 died")


class Restarting(Strange):
    async def ready(self) -> None:
        raise EngineGone("pid 4711 died")


class Empty(Strange):
    async def models(self) -> tuple[ModelEntry, ...]:
        return ()


@pytest.mark.parametrize(
    ("backend", "status", "reason"),
    [
        (talker(), 200, None),
        (Down(), 503, "engine_gone"),
        (Restarting(), 503, "engine_gone"),
        (Empty(), 503, "no model"),
    ],
)
async def test_ready_only_when_the_model_answers(
    tmp_path: Path, web: aiohttp.ClientSession, backend: Any, status: int, reason: str | None
) -> None:
    async with serving(tmp_path, backend) as api:
        assert (await send(web, api, "GET", "/healthz", headers={}))[:2] == (200, {"status": "ok"})
        got, told, _ = await send(web, api, "GET", "/readyz", headers={})
        assert (got, told.get("reason")) == (status, reason)
