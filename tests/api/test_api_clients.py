"""The openai SDK against a real server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from api_server import Api, serving, talker
from openai import AsyncOpenAI, OpenAI

HI: list[Any] = [{"role": "user", "content": "Hi"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    }
]
OFF = {"thinking": {"type": "disabled"}}


def client(api: Api, **options: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=api.url, api_key=api.key, max_retries=0, **options)


async def test_a_whole_answer(tmp_path: Path) -> None:
    async with serving(tmp_path, talker()) as api, client(api) as ai:
        answer = await ai.chat.completions.create(model="scripted", messages=HI)
        message: Any = answer.choices[0].message
        assert message.content == "You said: Hi" and message.reasoning_content == "A greeting is due."
        assert answer.choices[0].finish_reason == "stop" and answer.model == "scripted"
        usage: Any = answer.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
        assert usage.cached_tokens == usage.prompt_tokens_details.cached_tokens
        quiet = await ai.chat.completions.create(model="scripted", messages=HI, extra_body=OFF)
        assert "reasoning_content" not in quiet.choices[0].message.model_dump(exclude_unset=True)
        assert api.rows() == ["finished", "finished"]


@pytest.mark.parametrize("include_usage", [True, False])
async def test_a_stream_adds_up_to_the_whole_answer(tmp_path: Path, include_usage: bool) -> None:
    async with serving(tmp_path, talker()) as api, client(api) as ai:
        whole = await ai.chat.completions.create(model="scripted", messages=HI)
        options: Any = {"stream_options": {"include_usage": True}} if include_usage else {}
        stream = await ai.chat.completions.create(model="scripted", messages=HI, stream=True, **options)
        chunks = [chunk async for chunk in stream]
        deltas: list[Any] = [choice.delta for chunk in chunks for choice in chunk.choices]
        assert "".join(one.content or "" for one in deltas) == whole.choices[0].message.content
        thought = "".join(getattr(one, "reasoning_content", None) or "" for one in deltas)
        assert thought == "A greeting is due."
        assert [one.role for one in deltas if one.role] == ["assistant"]
        closing: Any = [choice for chunk in chunks for choice in chunk.choices if choice.finish_reason]
        assert [one.finish_reason for one in closing] == ["stop"]
        assert closing[0].usage["total_tokens"] == whole.usage.total_tokens  # type: ignore[union-attr]
        told = [chunk.usage for chunk in chunks if chunk.usage]
        assert [one.total_tokens for one in told] == [whole.usage.total_tokens] * include_usage  # type: ignore[union-attr]
        assert len({chunk.id for chunk in chunks}) == 1


async def test_a_tool_loop_whole_and_streamed(tmp_path: Path) -> None:
    async with serving(tmp_path, talker()) as api, client(api) as ai:
        whole = await ai.chat.completions.create(model="scripted", messages=HI, tools=TOOLS)
        assert whole.choices[0].finish_reason == "tool_calls"
        calls: Any = whole.choices[0].message.tool_calls
        assert [(one.id, one.function.name) for one in calls] == [
            ("functions.weather:0", "weather"),
            ("functions.weather:1", "weather"),
        ]
        assert json.loads(calls[0].function.arguments) == {"place": "Bœn"}
        async with ai.chat.completions.stream(model="scripted", messages=HI, tools=TOOLS) as stream:
            streamed = await stream.get_final_completion()
        again = streamed.choices[0].message.tool_calls or ()
        assert [(one.id, one.function.arguments) for one in again] == [
            (one.id, one.function.arguments) for one in calls
        ]
        results = [{"role": "tool", "tool_call_id": one.id, "content": "dry"} for one in calls]
        history: Any = [*HI, whole.choices[0].message, *results]
        last = await ai.chat.completions.create(model="scripted", messages=history, tools=TOOLS)
        assert last.choices[0].message.content == "You said: dry"


async def test_the_blocking_client_too(tmp_path: Path) -> None:
    def ask(api: Api) -> tuple[str | None, str]:
        with OpenAI(base_url=api.url, api_key=api.key, max_retries=0) as ai:
            whole = ai.chat.completions.create(model="scripted", messages=HI, extra_body=OFF)
            stream = ai.chat.completions.create(model="scripted", messages=HI, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return whole.choices[0].message.content, text

    async with serving(tmp_path, talker()) as api:
        assert await asyncio.to_thread(ask, api) == ("You said: Hi", "You said: Hi")


async def test_many_streams_at_once_do_not_mix(tmp_path: Path) -> None:
    async def ask(ai: AsyncOpenAI, number: int) -> str:
        said: Any = [{"role": "user", "content": f"number {number}"}]
        stream = await ai.chat.completions.create(model="scripted", messages=said, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async with serving(tmp_path, talker(chunk=1)) as api, client(api) as ai:
        answers = await asyncio.gather(*(ask(ai, number) for number in range(40)))
        assert answers == [f"You said: number {number}" for number in range(40)]
        assert api.rows() == ["finished"] * 40


async def test_models_and_the_name_served_as(tmp_path: Path) -> None:
    async with serving(tmp_path, talker(), serve_as="kimi-k2.6") as api, client(api) as ai:
        listed: Any = [model async for model in ai.models.list()]
        assert [one.id for one in listed] == ["scripted", "kimi-k2.6"]
        assert listed[0].context_length == 8192 and listed[0].supports_image_in is False
        assert (await ai.models.retrieve("kimi-k2.6")).id == "kimi-k2.6"
        answer = await ai.chat.completions.create(model="kimi-k2.6", messages=HI)
        assert answer.model == "kimi-k2.6"
        assert [row.model for row in api.accounts.usage_rows()] == ["scripted"]


async def test_an_unknown_model_is_not_found(tmp_path: Path) -> None:
    async with serving(tmp_path, talker()) as api, client(api) as ai:
        for name in ("kimi-k2.6", "moonshotai/Kimi-K2.6"):
            with pytest.raises(openai.NotFoundError, match="Not found the model"):
                await ai.chat.completions.create(model=name, messages=HI)
            with pytest.raises(openai.NotFoundError, match="Not found the model"):
                await ai.models.retrieve(name)
        assert api.rows() == []


async def test_the_request_id_leads_from_the_header_to_the_ledger(tmp_path: Path) -> None:
    async with serving(tmp_path, talker()) as api, client(api) as ai:
        answer = await ai.chat.completions.create(model="scripted", messages=HI)
        assert [row.request_id for row in api.accounts.usage_rows()] == [answer._request_id]
        assert answer.id == f"chatcmpl-{answer._request_id}"


async def test_errors_are_the_sdks_own_kinds(tmp_path: Path) -> None:
    async with serving(tmp_path, talker()) as api:
        async with client(api) as ai:
            with pytest.raises(openai.BadRequestError, match="messages must not be empty"):
                await ai.chat.completions.create(model="scripted", messages=[])
        async with AsyncOpenAI(base_url=api.url, api_key="sk-wrong", max_retries=0) as ai:
            with pytest.raises(openai.AuthenticationError, match="not valid"):
                await ai.chat.completions.create(model="scripted", messages=HI)
        async with AsyncOpenAI(base_url=api.url, api_key=api.admin_key, max_retries=0) as ai:
            with pytest.raises(openai.PermissionDeniedError):
                await ai.chat.completions.create(model="scripted", messages=HI)
