"""The openai SDK against our own engine, on a random tiny checkpoint that says nothing sensible."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
import torch
from api_server import Api, serving
from openai import AsyncOpenAI
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from perilune.backends.embedded import EmbeddedBackend
from perilune.model.tiny import write_tiny_checkpoint
from perilune.settings import Settings

HI: list[Any] = [{"role": "user", "content": "Hello, is anybody there? " * 6}]
OFF: dict[str, Any] = {"thinking": {"type": "disabled"}}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "search",
            "parameters": {
                "type": "object",
                "properties": {"line": {"type": "integer", "minimum": 1, "maximum": 9}},
                "required": ["line"],
                "additionalProperties": False,
            },
        },
    }
]


async def test_the_api_in_front_of_the_engine(tmp_path: Path) -> None:
    folder = tmp_path / "Tiny"
    folder.mkdir()
    write_tiny_checkpoint(folder, tokenizer=True)
    card = {"id": "tiny", "context_length": 600, "max_output_tokens": 300, "sampling_policy": "strict"}
    (folder / "perilune.json").write_text(json.dumps(card))
    settings = Settings(home=tmp_path, checkpoint=str(folder), threads=1, cache_tokens=4096)
    backend = await EmbeddedBackend.start(settings)
    try:
        async with serving(tmp_path / "home", backend) as api:
            async with AsyncOpenAI(base_url=api.url, api_key=api.key, max_retries=0) as ai:
                await whole_and_streamed(ai)
                await a_forced_call(ai)
                await structured_output(ai)
                await refusals(ai)
                await a_client_that_leaves(ai, api, backend)
    finally:
        await backend.close()


async def whole_and_streamed(ai: AsyncOpenAI) -> None:
    options: Any = {"model": "tiny", "messages": HI, "seed": 5, "max_tokens": 20}
    whole = await ai.chat.completions.create(**options, extra_body=OFF)
    usage: Any = whole.usage
    assert whole.choices[0].finish_reason in ("length", "stop") and 0 < usage.completion_tokens <= 20
    assert usage.cached_tokens == 0
    stream = await ai.chat.completions.create(
        **options, extra_body=OFF, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    told: Any = chunks[-1].usage
    assert told.prompt_tokens == usage.prompt_tokens
    assert 100 < told.cached_tokens == told.prompt_tokens_details.cached_tokens < told.prompt_tokens
    thought: Any = await ai.chat.completions.create(**options)
    assert thought.choices[0].message.reasoning_content
    assert thought.usage.completion_tokens_details.reasoning_tokens > 0


async def a_forced_call(ai: AsyncOpenAI) -> None:
    options: Any = {"model": "tiny", "messages": HI, "tools": TOOLS, "max_tokens": 200, "seed": 5}
    answer = await ai.chat.completions.create(
        **options, tool_choice="required", parallel_tool_calls=False, extra_body=OFF
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    [call] = answer.choices[0].message.tool_calls or ()
    assert call.id == "functions.search:0" and call.type == "function"
    assert 1 <= json.loads(call.function.arguments)["line"] <= 9


class Place(BaseModel):
    line: Literal[3, 5]
    kind: Literal["def", "use"]


async def structured_output(ai: AsyncOpenAI) -> None:
    """The SDK makes the schema of a class, and an object of the answer; both ways, whole and streamed."""
    options: Any = {"model": "tiny", "messages": HI, "max_tokens": 200, "seed": 3, "extra_body": OFF}
    whole = await ai.chat.completions.parse(**options, response_format=Place)
    assert isinstance(whole.choices[0].message.parsed, Place)
    async with ai.chat.completions.stream(**options, response_format=Place) as stream:
        streamed = (await stream.get_final_completion()).choices[0].message
    assert streamed.parsed == whole.choices[0].message.parsed
    tools = [openai.pydantic_function_tool(Place)]
    called = await ai.chat.completions.parse(
        **options, tools=tools, tool_choice="required", parallel_tool_calls=False
    )
    [call] = called.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Place)


async def refusals(ai: AsyncOpenAI) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"temperature": 0.5}, "invalid temperature: only 1 is allowed for this model"),
        ({"temperature": 1, "extra_body": OFF}, "only 0.6 is allowed"),
        ({"messages": [{"role": "user", "content": "long " * 300}]}, "600"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]}, "takes no images"),
    ]  # fmt: skip
    for fields, words in bad:
        for stream in (False, True):
            try:
                await ai.chat.completions.create(
                    **{"model": "tiny", "messages": HI, "stream": stream} | fields
                )
            except openai.BadRequestError as error:
                assert words in str(error)
            else:
                raise AssertionError(f"accepted: {fields}")


async def a_client_that_leaves(ai: AsyncOpenAI, api: Api, backend: EmbeddedBackend) -> None:
    stream = await ai.chat.completions.create(
        model="tiny", messages=HI, stream=True, max_tokens=300, extra_body=OFF
    )
    await anext(aiter(stream))
    await stream.close()
    async with asyncio.timeout(10):
        while (await backend.stats()).running or "open" in api.rows():  # noqa: ASYNC110  in another process
            await asyncio.sleep(0.02)
    row = api.accounts.usage_rows()[0]
    assert row.outcome in ("aborted", "finished")


async def test_weights_that_compute_nan_are_told_of_and_cost_nothing(tmp_path: Path) -> None:
    """Whole and streamed, and only to the call that they spoil."""
    folder = tmp_path / "Tiny"
    folder.mkdir()
    write_tiny_checkpoint(folder, tokenizer=True)
    spoil(folder, token=ord("~"))
    backend = await EmbeddedBackend.start(
        Settings(home=tmp_path, checkpoint=str(folder), threads=1, cache_tokens=4096)
    )
    options: Any = {"model": "tiny", "max_tokens": 4, "extra_body": OFF, "temperature": 0}
    spoilt: Any = options | {"messages": [{"role": "user", "content": "Hello ~"}]}
    try:
        async with serving(tmp_path / "home", backend) as api:
            async with AsyncOpenAI(base_url=api.url, api_key=api.key, max_retries=0) as ai:
                for stream in (False, True):
                    with pytest.raises(openai.InternalServerError, match=r"computed NaN or infinity.*check"):
                        await ai.chat.completions.create(**spoilt, stream=stream)
                assert (await ai.chat.completions.create(**options, messages=HI)).usage
            assert api.rows() == ["finished", "failed", "failed"]
            assert [row.charge > 0 for row in api.accounts.usage_rows()] == [True, False, False]
    finally:
        await backend.close()


def spoil(folder: Path, token: int) -> None:
    """Have the checkpoint compute NaN from that token on."""
    (folder / "checkpoint.sha256").unlink()
    name = "language_model.model.embed_tokens.weight"
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            tensors[name][token] = torch.nan
            save_file(tensors, path)
