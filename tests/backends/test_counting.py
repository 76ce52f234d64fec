"""Prompts of endpoints, counted with the tokenizer of their model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from loopback import GOOD, Endpoint, error

from perilune.accounts.accounts import Accounts
from perilune.backends.choose import open_backend
from perilune.backends.counting import PromptCounter
from perilune.backends.metered import MeteredBackend
from perilune.backends.quotes import MARKER_TOKENS
from perilune.chat.messages import ImagePart, Message, Request, TextPart, Tool
from perilune.chat.template import prompt_ids
from perilune.chat.tokenizer import Tokenizer
from perilune.errors import PeriluneError
from perilune.model.tiny import write_byte_tokenizer
from perilune.settings import Settings

HELLO = (Message(role="system", content="Be kind."), Message(role="user", content="Grüße ☾"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_byte_tokenizer(tmp_path)
    return tmp_path


def ask(**more: Any) -> Request:
    return Request(model="m", messages=HELLO, **more)


async def test_it_is_the_prompt_that_the_model_is_given(folder: Path) -> None:
    counter, tokenizer = PromptCounter.load(str(folder), "model_tokenizer"), Tokenizer.load(folder)
    for request in (ask(), ask(thinking=False), ask(tools=(Tool(name="f", description="x" * 99),))):
        assert await counter.count(request) == len(prompt_ids(request, tokenizer))
    long = Request(model="m", messages=(Message(role="user", content="☾ " * 40_000),))
    assert await counter.count(long) == len(prompt_ids(long, tokenizer)) > 160_000


async def test_a_request_is_counted_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter, request = PromptCounter.load(str(folder), "model_tokenizer"), ask(max_tokens=1)
    first = await counter.count(request)
    monkeypatch.setattr(counter, "_prompter", None)
    assert await counter.count(msgspec.structs.replace(request, max_tokens=2)) == first
    with pytest.raises(TypeError):
        await counter.count(msgspec.structs.replace(request, thinking=False))


async def test_what_only_the_endpoint_knows_is_not_guessed(folder: Path) -> None:
    counter = PromptCounter.load(str(folder), "model_tokenizer")
    picture = Message(role="user", content=(TextPart("What is it?"), ImagePart("data:image/png;base64,AA==")))
    assert await counter.count(Request(model="m", messages=(picture,))) is None


@pytest.mark.parametrize("fleet", [False, True])
async def test_a_reservation_is_of_the_counted_prompt(tmp_path: Path, folder: Path, fleet: bool) -> None:
    async with Endpoint([GOOD if fleet else error(404), GOOD]) as endpoint:
        table = {"name": "a", "url": endpoint.url, "model": "m", "tokenizer": str(folder)}
        how: dict[str, Any] = {"backends": (table,)}
        if not fleet:
            how = {"model_url": endpoint.url, "model_name": "m", "model_tokenizer": str(folder)}
        settings = Settings(home=tmp_path / "home", **how)
        backend = await open_backend(settings)
        with Accounts.open(settings.home, settings) as accounts:
            metered = MeteredBackend(backend, accounts, accounts.local_principal())
            request = ask(max_tokens=10)
            quote = await metered.quote(request)
            counted = len(prompt_ids(request, Tokenizer.load(folder)))
            assert (quote.prompt_bound, quote.prompt_estimate) == (counted, counted)
            await metered.complete(request)
            (row,) = accounts.usage_rows()
            assert row.reserved == counted * 950 + 10 * 4000
        await backend.close()


async def test_without_it_the_bytes_are_the_bound_whatever_the_language(tmp_path: Path) -> None:
    """No tokenizer makes more tokens of a text than it has bytes; the markers have room of their own."""
    async with Endpoint([error(404)]) as endpoint:
        settings = Settings(home=tmp_path, model_url=endpoint.url, model_name="m")
        backend = await open_backend(settings)
        with Accounts.open(tmp_path, settings) as accounts:
            quote = await MeteredBackend(backend, accounts, accounts.local_principal()).quote(ask())
        text = sum(len(str(message.content).encode()) for message in HELLO)
        assert quote.prompt_bound >= text + len(HELLO) * MARKER_TOKENS
        await backend.close()


@pytest.mark.parametrize("fleet", [False, True])
async def test_a_folder_that_holds_no_tokenizer_is_named(tmp_path: Path, fleet: bool) -> None:
    table = {"name": "a", "url": "http://127.0.0.1:9/v1", "model": "m", "tokenizer": str(tmp_path)}
    how: dict[str, Any] = {"backends": (table,)}
    if not fleet:
        how = {"model_url": "http://127.0.0.1:9/v1", "model_name": "m", "model_tokenizer": str(tmp_path)}
    with pytest.raises(PeriluneError, match="backends, a" if fleet else "model_tokenizer"):
        await open_backend(Settings(home=tmp_path, **how))
