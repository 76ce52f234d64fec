"""An endpoint that was not there at the start is asked what its model is when it comes: a gateway is up in a
second, a server of large weights in a quarter of an hour."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from loopback import GOOD, Endpoint, Handler, Heard, error, models

from perilune.backends.base import Backend, ModelEntry, complete
from perilune.backends.choose import open_backend
from perilune.backends.replicas import Replicas
from perilune.backends.router import Router
from perilune.chat.messages import Message, Request
from perilune.settings import Settings

SMALL = {
    "context_length": 4096,
    "supports_image_in": False,
    "supports_video_in": False,
    "perilune": {"max_output_tokens": 1024, "sampling_policy": "strict", "goals": "rename"},
}
ASK = Request(model="m", messages=(Message(role="user", content="hi"),), temperature=0.5)


class Late:
    """Down until it is `up`."""

    def __init__(self, **facts: Any) -> None:
        self.up = False
        self.listing = models("m", **facts) if facts else error(404)

    async def __call__(self, heard: Heard, writer: asyncio.StreamWriter) -> None:
        handler = error(503)
        if self.up:
            handler = GOOD if heard.method == "POST" else self.listing
        await handler(heard, writer)


async def entry_of(backend: Backend) -> ModelEntry:
    (entry,) = await backend.models()
    return entry


def sent(endpoint: Endpoint) -> list[dict[str, Any]]:
    return [heard.json for heard in endpoint.heard if heard.method == "POST"]


async def is_small(backend: Backend) -> None:
    async with asyncio.timeout(5):
        while (await entry_of(backend)).context_length != 4096:  # noqa: ASYNC110  it has no event
            await asyncio.sleep(0.01)
    entry = await entry_of(backend)
    assert (entry.max_output_tokens, entry.modalities) == (1024, ("text",))
    assert (entry.sampling_policy, entry.goals) == ("strict", "rename")


async def test_one_endpoint_tells_after_its_first_answer(tmp_path: Path) -> None:
    late = Late(**SMALL)
    async with Endpoint([late]) as endpoint:
        settings = Settings(home=tmp_path, model_url=endpoint.url, model_name="m", model_retries=0)
        backend = await open_backend(settings)
        try:
            guess = await entry_of(backend)
            assert (guess.context_length, guess.goals) == (262144, "any")
            late.up = True
            await complete(backend, ASK)
            await is_small(backend)
            await complete(backend, ASK)
            before, after = sent(endpoint)
            assert "temperature" in before and "temperature" not in after  # its sampling is its own
        finally:
            await backend.close()


async def test_an_endpoint_that_lists_nothing_is_asked_once_more_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perilune.backends.lookout.LOOK_EVERY_S", 0.0)
    late = Late()
    async with Endpoint([late]) as endpoint:
        settings = Settings(home=tmp_path, model_url=endpoint.url, model_name="m", model_retries=0)
        backend = await open_backend(settings)
        try:
            late.up = True
            for _ in range(3):
                await complete(backend, ASK)
            async with asyncio.timeout(5):
                while len(endpoint.heard) < 5:  # noqa: ASYNC110  it has no event
                    await asyncio.sleep(0.01)
            assert [heard.method for heard in endpoint.heard].count("GET") == 2
            assert (await entry_of(backend)).context_length == 262144
        finally:
            await backend.close()


@pytest.mark.parametrize("early", [error(500), error(429), models()])
async def test_what_an_endpoint_does_not_list_yet_it_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: Handler
) -> None:
    monkeypatch.setattr("perilune.backends.lookout.LOOK_EVERY_S", 0.0)
    late = Late(**SMALL)
    listing, late.listing = late.listing, early
    async with Endpoint([late]) as endpoint:
        settings = Settings(home=tmp_path, model_url=endpoint.url, model_name="m", model_retries=0)
        backend = await open_backend(settings)
        try:
            late.up = True
            await backend.ready()
            assert (await entry_of(backend)).context_length == 262144
            late.listing = listing
            await backend.ready()
            await is_small(backend)
        finally:
            await backend.close()


async def test_replicas_are_what_all_of_them_can_do_once_they_tell(tmp_path: Path) -> None:
    one, two = Late(context_length=200_000), Late(**SMALL)
    async with Endpoint([one]) as first, Endpoint([two]) as second:
        tables = tuple(
            {"name": name, "url": endpoint.url, "model": "m"}
            for name, endpoint in (("one", first), ("two", second))
        )
        router = await open_backend(Settings(home=tmp_path, backends=tables, model_retries=0))
        assert isinstance(router, Router)
        replicas = router._backends[0]
        assert isinstance(replicas, Replicas)
        try:
            assert (await entry_of(router)).context_length == 262144
            one.up = True
            for replica in replicas._all:
                await replicas._probe(replica)
            entry = await entry_of(router)
            assert (entry.context_length, entry.sampling_policy, entry.modalities[1:]) == (
                200_000,
                "open",
                ("image", "video"),
            )
            two.up = True
            for replica in replicas._all:
                replica.backend._lookout._looked = float("-inf")  # type: ignore[attr-defined]
                await replicas._probe(replica)
            await is_small(router)
            await complete(router, ASK)
            assert "temperature" not in (sent(first) + sent(second))[-1]
        finally:
            await router.close()
