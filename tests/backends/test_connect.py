"""`perilune connect`: what an endpoint shows of itself, or what is wrong with it."""

import asyncio

import pytest
from loopback import GOOD, Endpoint, Handler, Heard, answer, error, models

from perilune.backends.connect import probe
from perilune.errors import BackendAuth, BackendError, BackendProtocol, BackendRefused, ConfigError


def both(listing: Handler, chat: Handler) -> Handler:
    async def handle(heard: Heard, writer: asyncio.StreamWriter) -> None:
        await (listing if heard.method == "GET" else chat)(heard, writer)

    return handle


async def test_a_good_endpoint() -> None:
    async with Endpoint([both(models("a", "b", context_length=262144), GOOD)]) as endpoint:
        found = await probe(f"127.0.0.1:{endpoint.port}", "sk-1", "b")
    assert (found.url, found.name, found.models) == (endpoint.url, "b", ("a", "b"))
    assert (found.context_length, found.counts_tokens, found.answer) == (262144, True, "Hello")
    assert found.seconds > 0
    get, post = endpoint.heard
    assert get.path == "/v1/models"
    assert post.json["model"] == "b" and post.json["max_tokens"] == 32


async def test_the_only_model_needs_no_name() -> None:
    async with Endpoint([both(models("a", max_model_len=4096), GOOD)]) as endpoint:
        found = await probe(endpoint.url)
    assert (found.name, found.context_length) == ("a", 4096)


async def test_an_endpoint_that_lists_nothing_needs_a_name() -> None:
    async with Endpoint([both(error(404), GOOD)]) as endpoint:
        found = await probe(endpoint.url, name="secret-model")
        assert (found.name, found.models, found.context_length) == ("secret-model", (), None)
        with pytest.raises(BackendRefused):
            await probe(endpoint.url)
    async with Endpoint([both(models(), GOOD)]) as endpoint:
        with pytest.raises(ConfigError, match="give the model's name"):
            await probe(endpoint.url)


@pytest.mark.parametrize(
    ("listing", "chat", "name", "kind", "message"),
    [
        (models("a", "b"), GOOD, "", ConfigError, "2 models.*name one of: a, b"),
        (models("a", "b"), GOOD, "c", ConfigError, "no model c.*it lists: a, b"),
        (error(401, "who?"), GOOD, "a", BackendAuth, "model_key.*who"),
        (models("a"), error(401, "who?"), "a", BackendAuth, "who"),
        (models("a"), error(400, "no such thing"), "a", BackendRefused, "no such thing"),
        (models("a"), error(500, "broken"), "a", BackendError, "broken"),
        (answer(b"<html>", kind="text/html"), GOOD, "", BackendProtocol, "web page.*end in /v1"),
        (answer({"models": []}), GOOD, "", BackendProtocol, "not OpenAI-shaped"),
        (answer(b"{]"), GOOD, "", BackendProtocol, "not OpenAI-shaped"),
        (models("a"), answer({"answer": 42}), "", BackendProtocol, "no choice"),
    ],
)
async def test_what_is_wrong_is_said(
    listing: Handler, chat: Handler, name: str, kind: type[Exception], message: str
) -> None:
    async with Endpoint([both(listing, chat)]) as endpoint:
        with pytest.raises(kind, match=message) as caught:
            await probe(endpoint.url, "sk-secret", name)
    assert "sk-secret" not in str(caught.value)
    assert sum(heard.method == "POST" for heard in endpoint.heard) <= 1  # a probe does not try again
