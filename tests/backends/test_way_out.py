"""The way to endpoints: where a call goes, and with which key, is the operator's word alone."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from loopback import GOOD, GOOD_CHUNKS, STREAM_HEAD, Endpoint, Handler, Heard, chunk, models, raw

from perilune.accounts.accounts import Accounts
from perilune.backends.base import ModelEntry, complete
from perilune.backends.choose import open_backend
from perilune.backends.endpoint import AiohttpSession
from perilune.backends.listing import list_models
from perilune.backends.metered import MeteredBackend
from perilune.backends.upstream import UpstreamBackend
from perilune.chat.messages import Message, Request
from perilune.chat.wire import decode_request, encode_request
from perilune.errors import BackendError, BackendUnreachable
from perilune.settings import Settings

ENTRY = ModelEntry(id="mine", backend="upstream", context_length=1000, max_output_tokens=100)
CLIENTS = ("plain", "aiohttp")
"""Without TLS we speak HTTP by a client of our own, with it by aiohttp: both are tried, without."""


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "aiohttp":
        monkeypatch.setattr("perilune.backends.upstream.open_session", AiohttpSession)
    return str(request.param)


@asynccontextmanager
async def upstream(*handlers: Handler, url: str = "") -> AsyncIterator[tuple[UpstreamBackend, Endpoint]]:
    async with Endpoint(list(handlers)) as there:
        backend = UpstreamBackend(
            url or there.url, key="sk-secret", entry=ENTRY, model_name="theirs", retries=0
        )
        try:
            yield backend, there
        finally:
            await backend.close()


def ask(text: str = "hi") -> Request:
    return Request(model="mine", messages=(Message(role="user", content=text),))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(client: str, status: int) -> None:
    """Our key would go along to wherever an endpoint points."""
    async with Endpoint([GOOD]) as elsewhere:
        head = f"HTTP/1.1 {status} There\r\nLocation: {elsewhere.url}/chat/completions\r\n"
        there = raw(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
        async with upstream(there) as (backend, endpoint):
            with pytest.raises(BackendError):
                await complete(backend, ask())
            assert len(endpoint.heard) == 1
        async with Endpoint([there]) as endpoint, aiohttp.ClientSession() as session:
            with pytest.raises(BackendError):
                await list_models(session, endpoint.url, {"Authorization": "Bearer sk-secret"}, 5)
            assert len(endpoint.heard) == 1
        assert elsewhere.heard == []


async def test_no_proxy_is_taken_from_the_environment(client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Endpoint([GOOD]) as proxy, upstream(GOOD) as (backend, endpoint):
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert (await complete(backend, ask())).message.content == "Hello"
        assert (len(endpoint.heard), proxy.heard) == (1, [])


SMUGGLED: dict[str, Any] = {
    "api_base": "http://127.0.0.1:9/v1",
    "base_url": "http://127.0.0.1:9/v1",
    "api_key": "sk-theirs",
    "api_version": "1",
    "custom_llm_provider": "openai",
    "extra_headers": {"Authorization": "Bearer sk-theirs"},
    "headers": {"Host": "evil"},
    "extra_body": {"model": "other"},
    "provider": {"order": ["x"]},
    "models": ["other"],
    "fallbacks": [{"other": ["x"]}],
    "mock_response": "Hello",
    "user_config": {"model_list": []},
    "metadata": {"user_api_key": "x"},
    "guardrails": [],
    "chat_template": "{{ 1 }}",
    "documents": ["x"],
    "lora_request": {"lora_path": "/etc"},
    "store": True,
}


def test_a_client_s_routing_fields_go_nowhere() -> None:
    plain: dict[str, Any] = {"model": "mine", "messages": [{"role": "user", "content": "Hi"}]}
    told = [
        encode_request(decode_request(_json(body)).request, model="theirs", stream=True)
        for body in (plain, plain | SMUGGLED)
    ]
    assert told[0] == told[1]


async def test_a_call_goes_to_the_set_address_whatever_it_says(client: str) -> None:
    async with upstream(GOOD) as (backend, endpoint):
        body = {"model": "mine", "messages": [{"role": "user", "content": "Hi"}]} | SMUGGLED
        assert (await complete(backend, decode_request(_json(body)).request)).message.content == "Hello"
        (heard,) = endpoint.heard
        assert heard.headers["authorization"] == "Bearer sk-secret"
        assert heard.headers["host"] == f"127.0.0.1:{endpoint.port}"
        assert heard.json["model"] == "theirs"
        assert not SMUGGLED.keys() & heard.json.keys()
        assert b"sk-theirs" not in heard.body and b"evil" not in heard.body


async def test_more_calls_at_once_than_a_client_library_s_usual_hundred(client: str) -> None:
    many, together = 130, asyncio.Event()

    async def handle(heard: Heard, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == many:
            together.set()
        await together.wait()  # nobody is answered before all are here
        await GOOD(heard, writer)

    waiting = 0
    async with upstream(handle) as (backend, _), asyncio.timeout(20):
        answers = await asyncio.gather(*(complete(backend, ask(str(number))) for number in range(many)))
    assert [one.message.content for one in answers] == ["Hello"] * many


async def test_asking_whether_it_is_ready_reaches_the_endpoint_now_and_then() -> None:
    """Anybody may ask that, as often as they like."""
    async with upstream(models("theirs")) as (backend, endpoint):
        await asyncio.gather(*(backend.ready() for _ in range(50)))
        assert len(endpoint.heard) == 1


@pytest.mark.parametrize("their_id", ["", "same", None])
async def test_rows_have_ids_of_our_own(tmp_path: Path, their_id: str | None) -> None:
    """An endpoint that names all its answers alike, or not at all, loses no row of the ledger."""
    chunks = [one.replace(b'"id": "c"', f'"id": {_json(their_id).decode()}'.encode()) for one in GOOD_CHUNKS]
    assert chunks[0] != chunk(delta={"role": "assistant", "content": ""})
    async with Endpoint([models("m"), raw(STREAM_HEAD + b"".join(chunks))]) as endpoint:
        settings = Settings(home=tmp_path, model_url=endpoint.url, model_name="m", model_retries=0)
        backend = await open_backend(settings)
        with Accounts.open(tmp_path, settings) as accounts:
            metered = MeteredBackend(backend, accounts, accounts.local_principal())
            for _ in range(3):
                await metered.complete(Request(model="m", messages=ask().messages))
            assert [row.outcome for row in accounts.usage_rows()] == ["finished"] * 3
            assert accounts.verify() == ()
        await backend.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl command")
async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    heard = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        backend = UpstreamBackend(url, key="sk-secret", entry=ENTRY, model_name="theirs", retries=0)
        with pytest.raises(BackendUnreachable, match="no trusted TLS"):
            await complete(backend, ask())
        await backend.close()
    assert not any(heard)


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)
