"""Any endpoint: a real server on loopback does every wrong thing, and each is said in one clear line."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import uvicorn
from loopback import (
    GOOD,
    GOOD_CHUNKS,
    STREAM_HEAD,
    USAGE,
    Endpoint,
    Handler,
    answer,
    chunk,
    error,
    models,
    raw,
)

from perilune.backends.base import ModelEntry, complete
from perilune.backends.endpoint import base_url, retry_after
from perilune.backends.upstream import UpstreamBackend
from perilune.chat.messages import Message, Request, TextDelta, Tool, Usage
from perilune.errors import (
    BackendAuth,
    BackendError,
    BackendInterrupted,
    BackendOutOfQuota,
    BackendProtocol,
    BackendRateLimited,
    BackendRefused,
    BackendUnreachable,
    ConfigError,
    ContextTooLong,
    PeriluneError,
)
from perilune.settings import Settings

KEY = "sk-very-secret-0123456789"


class Served:
    """A backend on an endpoint of these handlers, with the pauses it took."""

    def __init__(self, endpoint: Endpoint, backend: UpstreamBackend, pauses: list[float]) -> None:
        self.endpoint = endpoint
        self.backend = backend
        self.pauses = pauses

    @property
    def calls(self) -> int:
        return len(self.endpoint.heard)


@asynccontextmanager
async def served(*handlers: Handler, timeout_s: float = 5.0, retries: int = 3) -> AsyncIterator[Served]:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    entry = ModelEntry(id="mine", backend="upstream", context_length=1000, max_output_tokens=100)
    async with Endpoint(list(handlers)) as endpoint:
        backend = UpstreamBackend(
            endpoint.url,
            key=KEY,
            entry=entry,
            model_name="theirs",
            timeout_s=timeout_s,
            retries=retries,
            sleep=sleep,
            chance=lambda: 1.0,
        )
        try:
            yield Served(endpoint, backend, pauses)
        finally:
            await backend.close()


def ask(**more: object) -> Request:
    return Request(model="mine", messages=(Message(role="user", content="hi"),), **more)  # type: ignore[arg-type]


async def test_a_streamed_answer() -> None:
    async with served(GOOD) as it:
        completion = await complete(it.backend, ask(max_tokens=9, tools=(Tool(name="f"),)))
        heard = it.endpoint.heard[0]
    assert (completion.message.content, completion.message.reasoning) == ("Hello", "hm")
    assert completion.usage == Usage(prompt_tokens=12, cached_tokens=8, completion_tokens=3)
    assert (heard.method, heard.path) == ("POST", "/v1/chat/completions")
    assert heard.headers["authorization"] == f"Bearer {KEY}"
    assert (heard.json["model"], heard.json["stream"], heard.json["max_tokens"]) == ("theirs", True, 9)
    assert heard.json["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_events_arrive_however_the_bytes_are_split(size: int) -> None:
    data = b"".join(GOOD_CHUNKS)

    async def trickle(heard: object, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for at in range(0, len(data), size):
            writer.write(data[at : at + size])
            await writer.drain()

    async with served(trickle) as it:
        assert (await complete(it.backend, ask())).message.content == "Hello"


async def test_an_event_is_passed_on_before_the_next_is_sent() -> None:
    more = asyncio.Event()

    async def stepwise(heard: object, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(delta={"content": "one"}))
        await writer.drain()
        await more.wait()
        writer.write(b"".join(GOOD_CHUNKS))
        await writer.drain()

    async with served(stepwise) as it:
        async with aclosing(it.backend.stream(ask())) as events:  # type: ignore[type-var]
            assert await anext(events) == TextDelta("one")
            more.set()
            assert len([event async for event in events]) == 3


async def test_a_json_answer_to_a_stream_request_is_taken() -> None:
    body = {
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}
        ],
        "usage": USAGE,
    }
    async with served(answer(body)) as it:
        completion = await complete(it.backend, ask())
    assert (completion.message.content, completion.usage.prompt_tokens) == ("Hello", 12)


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "text/event-stream"])
async def test_a_stream_with_any_content_type_is_taken(kind: str) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode()
    async with served(raw(head + b": ping\n\n" + b"".join(GOOD_CHUNKS))) as it:
        assert (await complete(it.backend, ask())).message.content == "Hello"


async def test_connections_are_used_again() -> None:
    """Against a real server, which keeps them open."""
    ports: set[int] = set()

    async def chat(scope: dict[str, Any], receive: object, send: Any) -> None:
        ports.add(scope["client"][1])
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for piece in GOOD_CHUNKS[:-1]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(0.02)  # the end of the body comes after the end of the answer
        await send({"type": "http.response.body", "body": GOOD_CHUNKS[-1]})

    server = uvicorn.Server(uvicorn.Config(chat, port=0, lifespan="off", log_level="warning", loop="asyncio"))
    running = asyncio.ensure_future(server.serve())
    while not server.started:  # noqa: ASYNC110  uvicorn has no event to wait for
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    entry = ModelEntry(id="m", backend="upstream", context_length=10, max_output_tokens=5)
    backend = UpstreamBackend(f"http://127.0.0.1:{port}/v1", entry=entry)
    for _ in range(5):
        assert (await complete(backend, ask())).message.content == "Hello"
        await asyncio.gather(*backend._resting)
    await backend.close()
    server.should_exit = True
    await running
    assert len(ports) == 1


# ---- what is final at once

FINAL: list[tuple[Handler, type[PeriluneError], str]] = [
    (error(401, "bad key"), BackendAuth, "refused the key: bad key"),
    (error(403, "not yours"), BackendAuth, "refused the key"),
    (error(400, "messages must not be empty"), BackendRefused, "messages must not be empty"),
    (error(400, "This model's maximum context length is 9"), ContextTooLong, "maximum context length is 9"),
    (error(404, "Not found the model"), BackendRefused, "Not found the model.*perilune connect"),
    (answer(b"<h1>Not here</h1>", 404, "text/html"), BackendRefused, "404.*perilune connect"),
    (answer(b"<html>hi</html>", 200, "text/html"), BackendProtocol, "a web page.*end in /v1"),
    (answer(b"{]", 200), BackendProtocol, "not JSON"),
    (answer(b"OK", 200, "text/plain"), BackendProtocol, "not JSON"),
    (answer(b"<html>hi</html>", 200, "text/plain"), BackendProtocol, "a web page"),
    (answer({"hello": "world"}), BackendProtocol, "no choice"),
    (answer([1, 2]), BackendProtocol, "not OpenAI-shaped"),
    (answer(b"", 301, headers={"Location": "https://x.example/v1"}), BackendProtocol, "x.example/v1"),
    (answer(b"", 204), BackendProtocol, "status 204"),
    (raw(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"), BackendProtocol, "does not speak HTTP"),
    (raw(STREAM_HEAD + b"data: {]\n\n"), BackendProtocol, "not JSON"),
    (raw(STREAM_HEAD + b'data: {"error": {"message": "boom"}}\n\n'), BackendError, "boom"),
    (raw(STREAM_HEAD + b"".join(GOOD_CHUNKS[:3])), BackendInterrupted, "before it was complete"),
    (raw(STREAM_HEAD + GOOD_CHUNKS[0][:-9]), BackendInterrupted, "was cut"),
    (raw(STREAM_HEAD), BackendInterrupted, "before it was complete"),
    (error(429, "pay", "exceeded_current_quota_error"), BackendOutOfQuota, "pay.*top up"),
    (error(429, "wait", retry_after="3600"), BackendRateLimited, "wait"),
    (error(500, "broken", x_should_retry="false"), BackendError, "broken"),
]


@pytest.mark.parametrize(("handler", "kind", "message"), FINAL)
async def test_what_no_retry_mends(handler: Handler, kind: type[PeriluneError], message: str) -> None:
    async with served(handler, GOOD) as it:
        with pytest.raises(kind, match=message) as caught:
            await complete(it.backend, ask())
        assert type(caught.value) is kind
        assert it.calls == 1
        assert it.pauses == []
    assert KEY not in str(caught.value)


async def test_a_long_retry_after_is_reported() -> None:
    async with served(error(429, "wait", retry_after="3600")) as it:
        with pytest.raises(BackendRateLimited) as caught:
            await complete(it.backend, ask())
    assert caught.value.retry_after_s == 3600


async def test_a_chunked_stream_cut_in_the_middle() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = GOOD_CHUNKS[2]
    async with served(raw(head + f"{len(piece):x}\r\n".encode() + piece + b"\r\n")) as it:
        events = []
        with pytest.raises(BackendInterrupted, match="was cut"):
            async for event in it.backend.stream(ask()):
                events.append(event)
    assert events == [TextDelta("Hello")]
    assert it.calls == 1


# ---- what a retry mends

PASSING: list[Handler] = [
    error(429, "slow down", "rate_limit_reached_error"),
    error(500),
    error(502),
    error(503),
    answer(b"<html>504</html>", 504, "text/html"),
    raw(b""),
    raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"),
]


@pytest.mark.parametrize("handler", PASSING)
async def test_what_a_retry_mends(handler: Handler) -> None:
    async with served(handler, handler, GOOD) as it:
        assert (await complete(it.backend, ask())).message.content == "Hello"
        assert it.calls == 3
    assert it.pauses == [0.5, 1.0]


@pytest.mark.parametrize("handler", PASSING)
async def test_patience_ends(handler: Handler) -> None:
    async with served(handler, retries=2) as it:
        with pytest.raises(BackendError) as caught:
            await complete(it.backend, ask())
        assert it.calls == 3
    assert caught.value.mend or "failed" in caught.value.message
    assert KEY not in str(caught.value)


async def test_retry_after_is_honoured() -> None:
    async with served(error(429, retry_after="7"), GOOD) as it:
        await complete(it.backend, ask())
    assert it.pauses == [7.0]


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        pauses: list[float] = []

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)

        entry = ModelEntry(id="m", backend="upstream", context_length=10, max_output_tokens=5)
        backend = UpstreamBackend(url, entry=entry, retries=2, sleep=sleep)
        with pytest.raises(BackendUnreachable, match="nothing answers at"):
            await complete(backend, ask())
        await backend.close()
    assert len(pauses) == 2


async def test_a_silent_endpoint_is_given_up_once() -> None:
    async with served(raw(b"", then=None), timeout_s=0.05) as it:
        # Interrupted, not unreachable: the endpoint may have worked, so a swarm counts the call as lost.
        with pytest.raises(BackendInterrupted, match=r"silent for 0.05 s.*model_timeout_s"):
            await complete(it.backend, ask())
        assert it.calls == 1


async def test_a_stream_that_falls_silent_is_interrupted() -> None:
    async with served(raw(STREAM_HEAD + GOOD_CHUNKS[2], then=None), timeout_s=0.05) as it:
        with pytest.raises(BackendInterrupted, match=r"silent for 0.05 s"):
            await complete(it.backend, ask())


async def test_an_endpoint_is_not_asked_each_time_that_we_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(error(401), models("theirs")) as it:
        for _ in range(3):
            with pytest.raises(BackendAuth):
                await it.backend.ready()
        refused = await asyncio.gather(*(it.backend.ready() for _ in range(9)), return_exceptions=True)
        assert {type(one) for one in refused} == {BackendAuth}
        assert it.calls == 1
        monkeypatch.setattr("perilune.backends.lookout.LOOK_EVERY_S", 0.0)
        await it.backend.ready()
        assert it.calls == 2


async def test_closing_the_stream_aborts_the_call_at_the_endpoint() -> None:
    async with served(raw(STREAM_HEAD + GOOD_CHUNKS[2], then=None)) as it:
        async with aclosing(it.backend.stream(ask())) as events:  # type: ignore[type-var]
            assert await anext(events) == TextDelta("Hello")
        await asyncio.wait_for(it.endpoint.gone.wait(), 5)


async def test_an_endpoint_that_is_down_is_told_of_when_it_is_opened(
    settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        assert (await entry_of(settings(model_url=url, model_name="k"))).id == "k"
    assert "nothing answers at" in caplog.text


async def test_an_answer_whose_body_does_not_end_keeps_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perilune.backends.upstream.REST_TIMEOUT_S", 0.05)
    async with served(raw(STREAM_HEAD + b"".join(GOOD_CHUNKS), then=None)) as it:
        assert (await complete(it.backend, ask())).message.content == "Hello"
        await asyncio.wait_for(it.endpoint.gone.wait(), 5)


# ---- dialects


def refuses(*fields: str) -> Handler:
    async def handle(heard: object, writer: asyncio.StreamWriter) -> None:
        sent = [field for field in fields if field in heard.json]  # type: ignore[attr-defined]
        chosen = error(400, f"Unrecognized request argument supplied: {sent[0]}") if sent else GOOD
        await chosen(heard, writer)  # type: ignore[arg-type]

    return handle


async def test_refused_optional_fields_are_left_out_from_then_on() -> None:
    async with served(refuses("chat_template_kwargs", "thinking", "seed")) as it:
        for _ in range(2):
            completion = await complete(it.backend, ask(thinking=False, seed=3))
            assert completion.message.content == "Hello"
        assert it.calls == 5  # three refusals, then twice right at once
        assert "seed" not in it.endpoint.heard[-1].json


async def test_a_refusal_that_only_mentions_a_field_teaches_nothing() -> None:
    """Else thinking could never be turned off there again."""
    about_else = error(400, "tool_choice 'required' is incompatible with thinking enabled")
    async with served(about_else, about_else, GOOD) as it:
        with pytest.raises(BackendRefused, match="incompatible"):
            await complete(it.backend, ask(thinking=False))
        await complete(it.backend, ask(thinking=False))
        sent = [heard.json.get("thinking") for heard in it.endpoint.heard]
    assert sent == [{"type": "disabled"}, None, {"type": "disabled"}]


async def test_the_newer_name_of_the_token_limit_is_learnt() -> None:
    async with served(
        error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."), GOOD
    ) as it:
        await complete(it.backend, ask(max_tokens=9))
        body = it.endpoint.heard[-1].json
    assert body["max_completion_tokens"] == 9
    assert "max_tokens" not in body


async def test_a_refusal_that_stays_is_raised() -> None:
    async with served(error(400, "seed thinking stream_options are wrong")) as it:
        with pytest.raises(BackendRefused):
            await complete(it.backend, ask(seed=1))
        assert it.calls == 2


async def test_the_key_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with served(error(429), refuses("seed"), refuses("seed"), GOOD) as it:
        await complete(it.backend, ask(seed=1))
    assert {record.name for record in caplog.records} >= {"perilune.backends.upstream"}
    assert KEY not in caplog.text


# ---- urls, keys, settings


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        (" https://api.moonshot.ai/v1/chat/completions ", "https://api.moonshot.ai/v1"),
        ("https://api.example.com/openai/v4", "https://api.example.com/openai/v4"),
        ("localhost:8000", "http://localhost:8000/v1"),
        ("10.0.0.7:8000/v1", "http://10.0.0.7:8000/v1"),
        ("api.moonshot.ai", "https://api.moonshot.ai/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_urls_are_normalised(given: str, meant: str) -> None:
    assert base_url(given) == meant
    assert base_url(meant) == meant


@pytest.mark.parametrize(
    "given", ["", "http://", "ftp://x/v1", "http://a b/v1", "http://x:99999/v1", "http://x/v1?key=1"]
)
def test_what_is_no_url_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="model_url"):
        base_url(given)


def test_a_key_in_the_url_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigError) as caught:
        base_url(f"https://me:{KEY}@api.example.com/v1")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", ["a\nb", "a b", "schlüssel"])
def test_an_unsendable_key_is_refused_without_repeating_it(key: str) -> None:
    entry = ModelEntry(id="m", backend="upstream", context_length=10, max_output_tokens=5)
    with pytest.raises(ConfigError, match="model_key") as caught:
        UpstreamBackend("http://x/v1", key=key, entry=entry)
    assert key not in str(caught.value)


def test_retry_after_in_both_forms() -> None:
    assert retry_after(None) is None
    assert retry_after("1.5") == 1.5
    assert retry_after("soon") is None
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


@pytest.fixture
def settings(tmp_path: object) -> Callable[..., Settings]:
    return lambda **more: Settings(home=tmp_path, **more)  # type: ignore[arg-type]


async def entry_of(settings: Settings) -> ModelEntry:
    backend = await UpstreamBackend.open(settings)
    (entry,) = await backend.models()
    await backend.close()
    return entry


async def test_an_endpoint_that_tells_nothing_is_taken_as_the_settings_say(
    settings: Callable[..., Settings],
) -> None:
    async with Endpoint([error(404)]) as endpoint:
        entry = await entry_of(
            settings(model_url=endpoint.url, model_name="k", model_context=5000, model_max_output=9000)
        )
    assert (entry.id, entry.context_length, entry.max_output_tokens, entry.goals) == ("k", 5000, 5000, "any")


async def test_what_an_endpoint_tells_of_its_model_holds(settings: Callable[..., Settings]) -> None:
    async with Endpoint([models("k", max_model_len=32768)]) as endpoint:
        entry = await entry_of(settings(model_url=endpoint.url, model_name="k", model_max_output=9000))
    assert (entry.context_length, entry.max_output_tokens) == (32768, 9000)
    told = {"goals": "rename", "orchestrator_profile": "orchestrate-rename", "subagent_profile": "rename"}
    async with Endpoint([models("nano", context_length=4096, perilune=told)]) as endpoint:
        entry = await entry_of(settings(model_url=endpoint.url, model_name="nano"))
    assert (entry.goals, entry.orchestrator_profile, entry.subagent_profile) == tuple(told.values())
    assert entry.context_length == entry.max_output_tokens == 4096
    async with Endpoint([models("k", perilune=[1])]) as endpoint:
        assert (await entry_of(settings(model_url=endpoint.url))).goals == "any"


async def test_it_is_billed_by_the_price_that_the_settings_name(settings: Callable[..., Settings]) -> None:
    async with Endpoint(GOOD) as endpoint:
        for more, price in (({}, "kimi-k2.6"), ({"model_price": "kimi-k2.5"}, "kimi-k2.5")):
            entry = await entry_of(settings(model_url=endpoint.url, model_name="kimi-k2.5", **more))
            assert entry.price == price


async def test_without_a_name_the_only_model_is_taken(settings: Callable[..., Settings]) -> None:
    async with Endpoint([models("one")]) as endpoint:
        assert (await entry_of(settings(model_url=endpoint.url))).id == "one"
    async with Endpoint([models("one", "two")]) as endpoint:
        with pytest.raises(ConfigError, match=r"model_name: .* has 2 models \(name one of: one, two\)"):
            await UpstreamBackend.open(settings(model_url=endpoint.url))
    async with Endpoint([error(401)]) as endpoint:
        with pytest.raises(BackendAuth):
            await UpstreamBackend.open(settings(model_url=endpoint.url))
