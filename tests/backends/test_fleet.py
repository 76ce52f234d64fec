"""Several real endpoints on loopback as one model: order, failover, rules, and the tables that say so."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from loopback import GOOD, GOOD_CHUNKS, STREAM_HEAD, Endpoint, Handler, answer, error, raw

from perilune.accounts.accounts import Accounts
from perilune.backends.affinity import conversation, in_order
from perilune.backends.base import complete
from perilune.backends.choose import open_backend
from perilune.backends.metered import MeteredBackend
from perilune.backends.replicas import Replica, Replicas
from perilune.backends.router import Router
from perilune.backends.scripted import ScriptedBackend, scripted_entry
from perilune.chat.messages import Message, Request, TextDelta
from perilune.errors import (
    BackendAuth,
    BackendError,
    BackendInterrupted,
    BackendRefused,
    BackendUnreachable,
    ConfigError,
    Forbidden,
)
from perilune.homefile import FILE_NAME
from perilune.settings import Settings


def ask(text: str = "hi", name: str = "m", **more: Any) -> Request:
    return Request(model=name, messages=(Message(role="user", content=text),), **more)


def first_for(name: str, *others: str) -> Request:
    """A request whose conversation belongs to the endpoint `name`."""
    replicas = [Replica(one, ScriptedBackend()) for one in (name, *others)]
    return next(
        request
        for number in range(1000)
        if in_order(request := ask(f"conversation {number}"), replicas)[0].name == name
    )


class Fleet:
    def __init__(self, router: Router, endpoints: dict[str, Endpoint], settings: Settings) -> None:
        self.router = router
        self.endpoints = endpoints
        self.settings = settings

    @property
    def calls(self) -> dict[str, int]:
        return {
            name: sum(heard.method == "POST" for heard in endpoint.heard)
            for name, endpoint in self.endpoints.items()
        }

    def replica(self, name: str) -> Replica:
        replicas = self.router._backends[0]
        assert isinstance(replicas, Replicas)
        return next(one for one in replicas._all if one.name == name)


def only_calls(handler: Handler) -> Handler:
    """The handler for calls; the list of models is not to be had, which is no harm."""

    async def handle(heard: Any, writer: asyncio.StreamWriter) -> None:
        await (handler if heard.method == "POST" else error(404))(heard, writer)

    return handle


@asynccontextmanager
async def fleet(
    home: Path,
    handlers: dict[str, Handler],
    fields: dict[str, dict[str, Any]] | None = None,
    access: tuple[dict[str, Any], ...] = (),
    **more: Any,
) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        endpoints = {
            name: await stack.enter_async_context(Endpoint([only_calls(handler)]))
            for name, handler in handlers.items()
        }
        tables = tuple(
            {"name": name, "url": endpoint.url, "model": "m", **(fields or {}).get(name, {})}
            for name, endpoint in endpoints.items()
        )
        settings = Settings(home=home, backends=tables, access=access, **{"model_retries": 0} | more)
        router = await open_backend(settings)
        assert isinstance(router, Router)
        try:
            yield Fleet(router, endpoints, settings)
        finally:
            await router.close()


# ---- which endpoint


def test_a_conversation_keeps_its_endpoint_as_it_grows() -> None:
    start = ask("hello")
    grown = msgspec.structs.replace(
        start,
        messages=(
            *start.messages,
            Message(role="assistant", content="yes?"),
            Message(role="user", content="more"),
        ),
    )
    assert conversation(start) == conversation(grown)
    assert conversation(start) != conversation(ask("other"))
    assert conversation(start) != conversation(msgspec.structs.replace(start, cache_salt="other"))
    keyed = [ask(text, prompt_cache_key="session-7") for text in "ab"]
    assert conversation(keyed[0]) == conversation(keyed[1])


def test_conversations_spread_and_only_those_of_a_lost_endpoint_move() -> None:
    replicas = [Replica(name, ScriptedBackend()) for name in "abc"]
    requests = [ask(f"conversation {number}") for number in range(600)]
    before = [in_order(request, replicas)[0].name for request in requests]
    after = [in_order(request, replicas[:2])[0].name for request in requests]
    assert all(150 < count < 250 for count in Counter(before).values())
    assert all(was == now for was, now in zip(before, after, strict=True) if was != "c")
    moved = Counter(now for was, now in zip(before, after, strict=True) if was == "c")
    assert min(moved.values()) > 60


async def test_each_conversation_goes_to_its_own_endpoint(tmp_path: Path) -> None:
    async with fleet(tmp_path, {"a": GOOD, "b": GOOD}) as it:
        for _ in range(3):
            assert (await complete(it.router, first_for("a", "b"))).message.content == "Hello"
        await complete(it.router, first_for("b", "a"))
        assert it.calls == {"a": 3, "b": 1}


# ---- when one fails


@pytest.mark.parametrize("handler", [error(500), error(429), error(401), raw(b"")])
async def test_the_next_endpoint_takes_over_before_the_first_byte(tmp_path: Path, handler: Handler) -> None:
    async with fleet(tmp_path, {"a": handler, "b": GOOD}) as it:
        assert (await complete(it.router, first_for("a", "b"))).message.content == "Hello"
        assert it.calls == {"a": 1, "b": 1}


async def test_nothing_is_tried_again_after_the_first_byte(tmp_path: Path) -> None:
    cut = raw(STREAM_HEAD + GOOD_CHUNKS[2])
    async with fleet(tmp_path, {"a": cut, "b": GOOD}, model_retries=3) as it:
        async with aclosing(it.router.stream(first_for("a", "b"))) as events:  # type: ignore[type-var]
            assert await anext(events) == TextDelta("Hello")
            with pytest.raises(BackendInterrupted):
                await anext(events)
        assert it.calls == {"a": 1, "b": 0}


async def test_a_silent_endpoint_is_not_asked_twice_for_the_same_work(tmp_path: Path) -> None:
    silent = raw(b"", then=None)
    async with fleet(tmp_path, {"a": silent, "b": GOOD}, model_timeout_s=0.05) as it:
        with pytest.raises(BackendInterrupted, match="silent"):
            await complete(it.router, first_for("a", "b"))
        assert it.calls == {"a": 1, "b": 0}


async def test_a_refused_request_is_refused_by_one(tmp_path: Path) -> None:
    async with fleet(tmp_path, {"a": error(400, "bad request"), "b": GOOD}) as it:
        with pytest.raises(BackendRefused, match="bad request"):
            await complete(it.router, first_for("a", "b"))
        assert it.calls == {"a": 1, "b": 0}


async def test_a_failing_endpoint_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with fleet(tmp_path, {"a": error(500), "b": GOOD}) as it:
        for _ in range(10):
            await complete(it.router, first_for("a", "b"))
        assert it.calls == {"a": 3, "b": 10}
        assert it.replica("a").breaker.state == "open"
    warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert len(warnings) == 1 and warnings[0].startswith("a gets no calls for 5 s: ")


async def test_a_refused_key_takes_its_endpoint_out_at_once(tmp_path: Path) -> None:
    async with fleet(tmp_path, {"a": error(401, "bad key")}) as it:
        with pytest.raises(BackendAuth):
            await complete(it.router, ask())
        with pytest.raises(BackendUnreachable, match="every endpoint of m"):
            await complete(it.router, ask())
        assert it.calls == {"a": 1}


async def test_no_pause_is_made_for_a_refused_key(tmp_path: Path) -> None:
    async def sleep(seconds: float) -> None:
        raise AssertionError("no pause mends a key")

    async with fleet(tmp_path, {"a": error(401), "b": error(403)}) as it:
        replicas = Replicas(scripted_entry("m"), [it.replica("a"), it.replica("b")], retries=3, sleep=sleep)
        with pytest.raises(BackendAuth):
            await complete(replicas, ask())
        assert it.calls == {"a": 1, "b": 1}


async def test_the_log_tells_when_an_endpoint_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet(tmp_path, {"a": error(400, "bad request")}) as it:
        it.replica("a").failed(BackendUnreachable("gone"), at_once=True)
        it.replica("a").breaker.wake()
        for _ in range(2):
            with pytest.raises(BackendRefused):
                await complete(it.router, ask())
        assert it.replica("a").duty.error == ""
    said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert said == ["a gets no calls for 5 s: gone", "a answers again"]


async def test_all_are_offered_a_call_again_after_a_pause(tmp_path: Path) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async with fleet(tmp_path, {"a": error(503), "b": error(503)}) as it:
        replicas = Replicas(
            scripted_entry("m"),
            [it.replica("a"), it.replica("b")],
            retries=1,
            sleep=sleep,
            chance=lambda: 1.0,
        )
        with pytest.raises(BackendUnreachable):
            await complete(replicas, ask())
        assert (it.calls, pauses) == ({"a": 2, "b": 2}, [0.5])


async def test_a_probe_finds_who_is_back_and_who_is_gone(tmp_path: Path) -> None:
    async with fleet(tmp_path, {"a": GOOD, "b": GOOD}) as it:
        replicas = it.router._backends[0]
        assert isinstance(replicas, Replicas)
        it.replica("a").breaker.failed(at_once=True)
        await replicas._probe(it.replica("a"))
        assert it.replica("a").breaker.state == "half open"
        await it.endpoints["b"].__aexit__()
        for _ in range(3):
            await replicas._probe(it.replica("b"))
        assert it.replica("b").breaker.state == "open"
        await it.router.ready()  # a is there
        await it.endpoints["a"].__aexit__()


async def test_probes_run_by_themselves(tmp_path: Path) -> None:
    async with fleet(tmp_path, {"a": GOOD}) as it:
        replicas = Replicas(scripted_entry("m"), [it.replica("a")])
        it.replica("a").breaker.failed(at_once=True)
        replicas.start_probes(every_s=0.01)
        async with asyncio.timeout(5):
            while it.replica("a").breaker.state == "open":  # noqa: ASYNC110  it has no event
                await asyncio.sleep(0.01)
        await replicas.close()


# ---- who may be served by whom

PLACES = {
    "a": {"region": "us", "vendor": "x", "data_classes": ("public",)},
    "b": {"region": "eu", "vendor": "y", "data_classes": ("public", "internal")},
}


@pytest.mark.parametrize("rule", [{"regions": ["eu"]}, {"vendors": ["y"]}, {"data_class": "internal"}])
@pytest.mark.parametrize("handler", [GOOD, error(500)])
async def test_only_the_allowed_endpoint_is_used_whatever_happens(
    tmp_path: Path, rule: dict[str, Any], handler: Handler
) -> None:
    async with fleet(tmp_path, {"a": GOOD, "b": handler}, PLACES, (rule,), serve_as="kimi-k2.6") as it:
        with Accounts.open(tmp_path, it.settings) as accounts:
            metered = MeteredBackend(it.router, accounts, accounts.local_principal())
            for number in range(4):
                if handler is GOOD:
                    await metered.complete(ask(f"conversation {number}", name="kimi-k2.6"))
                else:
                    with pytest.raises(BackendError):
                        await metered.complete(ask(f"conversation {number}"))
        assert it.calls["a"] == 0
        assert it.calls["b"] >= 3


async def test_a_call_that_none_may_serve_is_forbidden_and_leaves_no_row(tmp_path: Path) -> None:
    rules = ({"regions": ["eu"]}, {"vendors": ["x"]})
    async with fleet(tmp_path, {"a": GOOD, "b": GOOD}, PLACES, rules) as it:
        with Accounts.open(tmp_path, it.settings) as accounts:
            metered = MeteredBackend(it.router, accounts, accounts.local_principal())
            with pytest.raises(Forbidden, match="no endpoint of the model m may serve this key") as caught:
                await metered.complete(ask())
            assert caught.value.http_status == 403
            assert not list(accounts.usage_rows())
        assert it.calls == {"a": 0, "b": 0}


async def test_rules_concern_those_they_name(tmp_path: Path) -> None:
    async with fleet(
        tmp_path,
        {"a": GOOD},
        PLACES,
        ({"projects": [99], "keys": [98], "organisations": [97], "regions": ["eu"]},),
    ) as it:
        with Accounts.open(tmp_path, it.settings) as accounts:
            principal = accounts.local_principal()
            assert (await complete(it.router.serving(principal), ask())).message.content == "Hello"
            for other in ({"project_id": 99}, {"key_id": 98}, {"organisation_id": 97}):
                with pytest.raises(Forbidden):
                    await complete(it.router.serving(replace(principal, **other)), ask())
        # Where there are rules, a call on nobody's account is served by none.
        with pytest.raises(Forbidden):
            await complete(it.router, ask())


# ---- the tables


async def test_names_are_mapped_and_dialects_spoken(tmp_path: Path) -> None:
    fields = {
        "a": {"model": "org/Kimi", "serves": "kimi-k2.6", "aliases": ["k2"], "engine": "vllm", "key": "sk-1"},
        "b": {"model": "other", "engine": "ollama", "context": 100},
    }
    async with fleet(tmp_path, {"a": GOOD, "b": GOOD}, fields) as it:
        assert [entry.id for entry in await it.router.models()] == ["kimi-k2.6", "other"]
        assert (await it.router.models())[1].context_length == 100
        for name in ("k2", "other"):
            await complete(it.router, msgspec.structs.replace(ask(thinking=False), model=name))
        first, second = (it.endpoints[name].heard[-1] for name in "ab")
    assert (first.json["model"], first.headers["authorization"]) == ("org/Kimi", "Bearer sk-1")
    assert first.json["chat_template_kwargs"] == {"thinking": False}
    assert "thinking" not in first.json and "authorization" not in second.headers
    assert second.json["reasoning_effort"] == "none" and "chat_template_kwargs" not in second.json


TWO = '[[backends]]\nname = "a"\nurl = "http://127.0.0.1:9/v1"\nmodel = "m"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('backends = "sk-secret"', ["backends", "list of tables", "[[backends]]"]),
        ('[[backends]]\nname = "a"', ["backends", "table 1", "url"]),
        (TWO + 'checkpoint = "x"', ["table 1", "embedded engine only"]),
        (TWO + 'engine = "embedded"', ["table 1", "no `url`"]),
        (TWO + 'keyy = "sk-secret"', ["table 1", "keyy"]),
        ('[[backends]]\nname = "a"\nurl = "http://a b"\nmodel = "m"', ["backends, a", "not the URL"]),
        (TWO + "key = 7", ["table 1", "$.key"]),
        (TWO + 'engine = "tgi"', ["table 1", "tgi", "use one of hosted, vllm"]),
        (TWO + TWO, ["'a'", "a name of its own"]),
        (TWO + "[[access]]\nkeys = [2]", ["access", "table 1", "asks for nothing"]),
        (TWO + '[[access]]\nregion = "eu"', ["access", "table 1", "region"]),
        ('model_url = "http://x/v1"\n' + TWO, ["model_url", "keep one"]),
        ('[[access]]\nregions = ["eu"]', ["access", "no backends"]),
        (TWO + TWO.replace('"a"', '"b"') + 'price = "other"', ["several prices"]),
    ],
)
async def test_a_wrong_table_gets_one_clear_line(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ConfigError) as caught:
        await open_backend(Settings.load(tmp_path, {}, {}))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "sk-secret" not in str(caught.value)


async def test_what_is_wrong_with_an_endpoint_names_its_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listing = answer({"data": [{"id": "m"}, {"id": "n"}]})
    async with Endpoint([listing]) as good, Endpoint([error(401, "bad key")]) as shut:
        (tmp_path / FILE_NAME).write_text(f'[[backends]]\nname = "shut"\nurl = "{shut.url}"\n')
        with pytest.raises(BackendAuth, match="backends, shut: "):
            await open_backend(Settings.load(tmp_path, {}, {}))
        (tmp_path / FILE_NAME).write_text(
            f'[[backends]]\nname = "good"\nurl = "{good.url}"\nmodel = "x"\n'
            + TWO.replace('"m"', '"x"').replace('"a"', '"gone"')
            + '[[access]]\nkeys = [2]\nregions = ["mars"]\n'
        )
        await (await open_backend(Settings.load(tmp_path, {}, {}))).close()
    assert "backends, good does not list the model x and may refuse it (it lists: m, n)" in caplog.text
    assert "calls to backends, gone will fail for now: nothing answers" in caplog.text
    assert "access, table 1: no backend meets it" in caplog.text


def test_tables_come_from_the_file_and_their_keys_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(TWO + 'key = "sk-secret"')
    settings = Settings.load(tmp_path, {}, {})
    assert settings.backends[0]["key"] == "sk-secret"
    assert "sk-secret" not in repr(settings)
    with pytest.raises(ConfigError, match="list of tables"):
        Settings.load(tmp_path, {}, {"PERILUNE_BACKENDS": "[]"})
