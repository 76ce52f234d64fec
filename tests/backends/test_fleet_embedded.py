"""Our own engine as one of the `[[backends]]`, alone and beside endpoints."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from loopback import GOOD, Endpoint, Handler, error

from perilune.accounts.accounts import Accounts
from perilune.backends.affinity import in_order
from perilune.backends.base import complete
from perilune.backends.choose import open_backend
from perilune.backends.embedded import EmbeddedBackend
from perilune.backends.metered import MeteredBackend
from perilune.backends.replicas import Replicas
from perilune.backends.router import Router
from perilune.backends.scripted import ScriptedBackend
from perilune.chat.messages import Message, Request, TextDelta, Tool
from perilune.errors import CheckpointError, ConfigError, ContextTooLong, EngineGone, PeriluneError
from perilune.model.tiny import write_tiny_checkpoint
from perilune.settings import Settings

NOTHING: dict[str, str] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Tiny"
    folder.mkdir()
    write_tiny_checkpoint(folder, tokenizer=True)
    card = {"id": "tiny", "context_length": 512, "max_output_tokens": 20}
    (folder / "perilune.json").write_text(json.dumps(card))
    return folder


def only_calls(handler: Handler) -> Handler:
    async def handle(heard: Any, writer: Any) -> None:
        await (handler if heard.method == "POST" else error(404))(heard, writer)

    return handle


class Mixed:
    """The engine as `here`, and an endpoint as `there`, both as the model `m`."""

    def __init__(self, router: Router, endpoint: Endpoint, settings: Settings) -> None:
        self.router = router
        self.endpoint = endpoint
        self.settings = settings
        replicas = router._backends[0]
        assert isinstance(replicas, Replicas)
        self.here, self.there = replicas._all
        assert isinstance(self.here.backend, EmbeddedBackend)
        self.engine = self.here.backend

    def ask(self, first: str, **more: Any) -> Request:
        """A request whose conversation belongs to that one."""
        for number in range(1000):
            message = Message(role="user", content=f"conversation {number}")
            request = Request(model="m", messages=(message,), **{"max_tokens": 8, "thinking": False} | more)
            if in_order(request, (self.here, self.there))[0].name == first:
                return request
        raise AssertionError("no conversation belongs there")

    @property
    def calls(self) -> int:
        return sum(heard.method == "POST" for heard in self.endpoint.heard)

    async def kill_the_engine(self) -> None:
        os.kill((await self.engine.client()).pid, signal.SIGKILL)


@asynccontextmanager
async def mixed(
    home: Path, folder: Path, handler: Handler = GOOD, there: dict[str, str] = NOTHING, **more: Any
) -> AsyncIterator[Mixed]:
    async with Endpoint([only_calls(handler)]) as endpoint:
        tables = (
            {"name": "here", "engine": "embedded", "checkpoint": str(folder), "serves": "m", "region": "eu"},
            {"name": "there", "url": endpoint.url, "model": "theirs", "serves": "m", "region": "us"} | there,
        )
        defaults: dict[str, Any] = {"model_retries": 0, "threads": 1, "cache_tokens": 4096}
        settings = Settings(home=home, backends=tables, **defaults | more)
        router = await open_backend(settings)
        assert isinstance(router, Router)
        try:
            yield Mixed(router, endpoint, settings)
        finally:
            await router.close()


async def test_each_conversation_has_its_place_and_the_entry_is_what_both_can_do(
    tmp_path: Path, folder: Path
) -> None:
    async with mixed(tmp_path, folder) as it:
        (entry,) = await it.router.models()
        assert (entry.id, entry.context_length, entry.max_output_tokens) == ("m", 512, 20)
        assert [(one.name, one.kind) for one in await it.router.members()] == [
            ("here", "embedded"),
            ("there", "upstream"),
        ]
        own = await complete(it.router, it.ask("here"))
        assert it.calls == 0 and own.usage.prompt_tokens > 0
        assert (await complete(it.router, it.ask("there"))).message.content == "Hello"
        assert it.calls == 1


async def test_an_engine_that_died_hands_its_calls_on_and_comes_back(tmp_path: Path, folder: Path) -> None:
    async with mixed(tmp_path, folder) as it:
        request = it.ask("here", max_tokens=20)
        events = it.router.stream(request)
        with pytest.raises(EngineGone):  # after its first byte nothing is tried again
            async for event in events:
                if isinstance(event, TextDelta) and it.here.duty.running:
                    await it.kill_the_engine()
                    it.here.duty.drained = True
        assert it.calls == 0 and it.here.duty.error
        assert (await complete(it.router, request)).message.content == "Hello"
        it.here.duty.drained = False
        await complete(it.router, request)  # the engine was started again by its next call
        assert it.calls == 1 and it.here.duty.error == ""


async def test_an_engine_that_cannot_start_hands_its_calls_on(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mixed(tmp_path, folder) as it:

        async def gone() -> None:
            raise EngineGone("out of memory")

        monkeypatch.setattr(it.engine, "client", gone)
        for number in range(3):
            assert (await complete(it.router, it.ask("here", seed=number))).message.content == "Hello"
        assert it.here.breaker.state == "open" and it.here.duty.error == "out of memory"
        monkeypatch.undo()


async def test_what_no_other_would_do_better_is_told(tmp_path: Path, folder: Path) -> None:
    async with mixed(tmp_path, folder) as it:
        long = Message(role="user", content="word " * 2000)
        request = Request(model="m", messages=(long,), prompt_cache_key=None)
        for number in range(50):
            request = Request(model="m", messages=(long,), prompt_cache_key=f"k{number}")
            if in_order(request, (it.here, it.there))[0].name == "here":
                break
        with pytest.raises(ContextTooLong):
            await complete(it.router, request)
        assert it.calls == 0 and it.here.breaker.state == "closed"


async def test_rules_hold_for_the_engine_too(tmp_path: Path, folder: Path) -> None:
    access = ({"regions": ["eu"]},)
    async with mixed(tmp_path, folder, access=access) as it:
        with Accounts.open(tmp_path, it.settings) as accounts:
            metered = MeteredBackend(it.router, accounts, accounts.local_principal())
            _, charge = await metered.complete(it.ask("there"))
            assert it.calls == 0
            (row,) = accounts.usage_rows()
            # Only the engine may serve it, and the engine counts: the reservation was exact.
            assert row.reserved == charge.buckets.uncached * 950 + 8 * 4000


async def test_with_its_tokenizer_an_endpoints_prompts_are_counted_as_the_engine_counts_them(
    tmp_path: Path, folder: Path
) -> None:
    async with mixed(tmp_path, folder, there={"tokenizer": str(folder)}) as it:
        for request in (
            it.ask("here"),
            it.ask("there", tools=(Tool(name="f", description="Grüße ☾"),), thinking=True),
        ):
            counted = await it.router.count_tokens(request)
            assert (
                counted
                == await it.engine.count_tokens(request)
                == await it.there.backend.count_tokens(request)
            )
        usage = (await complete(it.router, it.ask("here"))).usage
        assert usage.prompt_tokens == await it.there.backend.count_tokens(it.ask("here"))


async def test_beside_an_endpoint_that_cannot_count_bytes_are_the_bound(tmp_path: Path, folder: Path) -> None:
    async with mixed(tmp_path, folder) as it:
        assert await it.router.count_tokens(it.ask("here")) is None
        assert await it.engine.count_tokens(it.ask("here")) is not None


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        ({"checkpoint": "none"}, CheckpointError, "backends, b: no such folder"),
        ({"checkpoint": "good", "price": "other"}, ConfigError, "several prices"),
    ],
)
async def test_a_wrong_table_ends_the_engines_that_were_started(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bad: dict[str, str],
    kind: type[PeriluneError],
    words: str,
) -> None:
    running: list[object] = []

    class Engine(ScriptedBackend):
        async def close(self) -> None:
            running.remove(self)

    async def start(settings: Settings) -> Engine:
        if settings.checkpoint == "none":
            raise CheckpointError("no such folder", field="checkpoint")
        running.append(Engine())
        return running[-1]  # type: ignore[return-value]

    monkeypatch.setattr("perilune.backends.fleet.open_engine", start)
    good = {"name": "a", "engine": "embedded", "checkpoint": "good"}
    settings = Settings(home=tmp_path, backends=(good, good | {"name": "b"} | bad))
    with pytest.raises(kind, match=words):
        await open_backend(settings)
    assert running == []
