"""The numbered checklist of the Kimi API: what only a real engine shows, on a random tiny checkpoint.

Each test bears its statement's number.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from kimi_server import HI, OFF, Kimi, kimi_serving

from perilune.backends.embedded import EmbeddedBackend
from perilune.model.tiny import write_tiny_checkpoint
from perilune.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTEXT = 1200
LONG = "The harbour lies quiet, the boats are in, and nobody is on the quay. " * 5
PLACE = {
    "type": "object",
    "properties": {"line": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["line"],
    "additionalProperties": False,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def k26(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kimi]:
    home = tmp_path_factory.mktemp("kimi")
    folder = home / "Tiny"
    folder.mkdir()
    write_tiny_checkpoint(folder, tokenizer=True)
    card = {
        "id": "kimi-k2.6",
        "context_length": CONTEXT,
        "max_output_tokens": 300,
        "sampling_policy": "strict",
    }
    (folder / "perilune.json").write_text(json.dumps(card))
    settings = Settings(home=home, checkpoint=str(folder), threads=1, cache_tokens=8192)
    backend = await EmbeddedBackend.start(settings)
    try:
        async with kimi_serving(home / "home", backend) as kimi:
            yield kimi
    finally:
        await backend.close()


async def test_011_keep_all_keeps_earlier_thinking(k26: Kimi) -> None:
    """Of earlier turns; that of the tool loop under way is always kept."""
    thought = {"role": "assistant", "content": "Hi.", "reasoning_content": "A greeting is due."}
    sizes = [
        (await k26.ask(messages=[*HI, thought, *HI], thinking=thinking, max_tokens=1)).usage["prompt_tokens"]
        for thinking in ({"type": "enabled", "keep": keep} for keep in (None, "all"))
    ]
    assert sizes[1] - sizes[0] >= len("A greeting is due.") / 2


async def test_020_a_small_cap(k26: Kimi) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = await k26.ask(**{name: 5}, seed=1)
        assert answer.choice["finish_reason"] == "length" and 0 < answer.usage["completion_tokens"] <= 5
        assert answer.message["content"] == ""  # it was cut while it thought


async def test_036_totals(k26: Kimi) -> None:
    usage = (await k26.ask(max_tokens=5, seed=1)).usage
    assert usage["completion_tokens"] == usage["completion_tokens_details"]["reasoning_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5


async def test_022_a_prompt_over_the_context(k26: Kimi) -> None:
    (await k26.ask(messages=said(LONG * 5))).refused(f"exceeded model token limit: {CONTEXT} (requested:")


async def test_027_a_stop(k26: Kimi) -> None:
    whole = await plain(k26)
    letter = next(character for character in whole[3:] if character.isascii() and character.isalnum())
    answer = await k26.ask(thinking=OFF, seed=5, max_tokens=60, stop=[letter])
    assert answer.message["content"] == whole[: whole.index(letter)]
    assert answer.choice["finish_reason"] == "stop"


async def test_037_the_same_prompt_again(k26: Kimi) -> None:
    first, second = [await k26.ask(messages=said(LONG), thinking=OFF, seed=1, max_tokens=20) for _ in "12"]
    assert first.usage["cached_tokens"] < 256 < second.usage["cached_tokens"] < second.usage["prompt_tokens"]
    assert second.message == first.message


async def test_038_another_beginning(k26: Kimi) -> None:
    for system, least, most in (("One.", 0, 64), ("One.", 256, CONTEXT), ("Two!", 0, 64)):
        messages = [{"role": "system", "content": system}, *said(LONG)]
        usage = (await k26.ask(messages=messages, max_tokens=1)).usage
        assert least <= usage["cached_tokens"] <= most


async def test_045_choice_none(k26: Kimi) -> None:
    for seed in range(3):
        answer = await k26.ask(tools=[tool()], tool_choice="none", thinking=OFF, seed=seed, max_tokens=40)
        assert "tool_calls" not in answer.message


async def test_048_a_demanded_call_fits_its_schema(k26: Kimi) -> None:
    call = await demanded(k26, tool())
    assert 1 <= call["line"] <= 9


async def test_052_a_tool_that_is_not_strict(k26: Kimi) -> None:
    assert isinstance(await demanded(k26, tool(strict=False)), dict)


async def test_053_json_object(k26: Kimi) -> None:
    whole = 0
    for seed in range(6):
        answer = await k26.ask(
            response_format={"type": "json_object"}, thinking=OFF, seed=seed, max_tokens=200
        )
        if answer.choice["finish_reason"] == "stop":
            whole += 1
            assert isinstance(json.loads(answer.message["content"]), dict)
    assert whole


async def test_054_json_schema(k26: Kimi) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": PLACE}}
    answer = await k26.ask(response_format=form, thinking=OFF, seed=3, max_tokens=200)
    assert answer.choice["finish_reason"] == "stop"
    assert 1 <= json.loads(answer.message["content"])["line"] <= 9


async def test_056_partial(k26: Kimi) -> None:
    sizes = []
    for prefix in ("Once upon", "Once upon a time"):
        partial = {"role": "assistant", "content": prefix, "partial": True}
        answer = await k26.ask(messages=[*HI, partial], thinking=OFF, seed=5, max_tokens=20)
        assert not answer.message["content"].startswith("Once")
        sizes.append(answer.usage["prompt_tokens"])
    assert sizes[1] - sizes[0] == len(" a time")


async def test_063_the_estimate_is_the_prompt_s_size(k26: Kimi) -> None:
    for more in ({}, {"tools": [tool()]}, {"messages": said(LONG)}):
        estimate = (await k26.ask("/v1/tokenizers/estimate-token-count", **more)).body
        usage = (await k26.ask(max_tokens=1, **more)).usage
        assert estimate == {"data": {"total_tokens": usage["prompt_tokens"]}}


async def plain(k26: Kimi) -> str:
    return str((await k26.ask(thinking=OFF, seed=5, max_tokens=60)).message["content"])


async def demanded(k26: Kimi, one: dict[str, Any]) -> Any:
    """The arguments of the call that the model must make."""
    fields = {"tools": [one], "tool_choice": "required", "parallel_tool_calls": False, "thinking": OFF}
    answer = await k26.ask(**fields, seed=5, max_tokens=200)
    assert answer.choice["finish_reason"] == "tool_calls"
    (call,) = answer.message["tool_calls"]
    return json.loads(call["function"]["arguments"])


def tool(**more: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "search", "parameters": PLACE} | more}


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]
