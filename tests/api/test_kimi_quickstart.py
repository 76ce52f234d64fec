"""The programs of the vendor's quick start (chat, thinking, tools) against a model served as kimi-k2.6.

Calls, fields and flow are the vendor's; the prompts are shorter.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from api_server import Api, serving
from kimi_server import kimi
from openai import OpenAI

from perilune.backends.scripted import scripted_entry

CHAT = """
from openai import OpenAI

client = OpenAI(api_key="$MOONSHOT_API_KEY", base_url="https://api.moonshot.ai/v1")
completion = client.chat.completions.create(
    model="MODEL",
    messages=[
        {"role": "system", "content": "You are Kimi."},
        {"role": "user", "content": "Hello, what is 1+1?"},
    ],
)
print(completion.choices[0].message.content)
"""
THINKING = """
from openai import OpenAI

client = OpenAI(api_key="$MOONSHOT_API_KEY", base_url="https://api.moonshot.ai/v1")
for mode in ("enabled", "disabled"):
    stream = client.chat.completions.create(
        model="MODEL",
        messages=[{"role": "user", "content": "Why is the sky blue?"}],
        max_tokens=1024 * 32,
        stream=True,
        temperature=1.0 if mode == "enabled" else 0.6,
        top_p=0.95,
        extra_body={"thinking": {"type": mode}},
    )
    for chunk in stream:
        if chunk.choices:
            delta = chunk.choices[0].delta
            if hasattr(delta, "reasoning_content") and getattr(delta, "reasoning_content"):
                print(getattr(delta, "reasoning_content"), end="")
            if delta.content:
                print(delta.content, end="")
"""
INSTANT = """
import os
import openai

client = openai.Client(base_url="https://api.moonshot.ai/v1", api_key=os.getenv("MOONSHOT_API_KEY"))
response = client.chat.completions.create(
    model="MODEL",
    messages=[
        {"role": "system", "content": "You are Kimi."},
        {"role": "user", "content": [{"type": "text", "text": "Which is larger, 9.11 or 9.9?"}]},
    ],
    max_tokens=4096,
    extra_body={"thinking": {"type": "disabled"}},
)
message = response.choices[0].message
print(hasattr(message, "reasoning_content"), message.content)
"""
CURL = r"""
curl -s https://api.moonshot.ai/v1/chat/completions \
    -H "Content-Type: application/json" \
    -H "Authorization: Bearer $MOONSHOT_API_KEY" \
    -d '{
        "model": "MODEL",
        "messages": [
            {"role": "system", "content": "You are Kimi."},
            {"role": "user", "content": "Hello, what is 1+1?"}
        ],
        "temperature": 1.0
   }'
"""
TOOLS = """
import json
from openai import OpenAI

client = OpenAI(api_key="$MOONSHOT_API_KEY", base_url="https://api.moonshot.ai/v1")
tools = [{
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {"city": {"type": "string"}},
        },
    },
}]
messages = [{"role": "user", "content": "How is the weather in Riga and Oslo?"}]
finish_reason = None
while finish_reason is None or finish_reason == "tool_calls":
    completion = client.chat.completions.create(model="MODEL", messages=messages, tools=tools)
    choice = completion.choices[0]
    finish_reason = choice.finish_reason
    if finish_reason == "tool_calls":
        messages.append(choice.message)
        for tool_call in choice.message.tool_calls:
            arguments = json.loads(tool_call.function.arguments)
            print(arguments["city"])
            messages.append({
                "role": "tool",
                "tool_call_id": tool_call.id,
                "name": tool_call.function.name,
                "content": json.dumps({"weather": "dry"}),
            })
print(choice.message.content)
"""
IDS = ("kimi-k2.6", "moonshot-v1-k2-6")
SNIPPETS = {
    "chat": (CHAT, "At most 32768 tokens.\n"),
    "thinking": (THINKING, "Short is best.At most 32768 tokens.At most 32768 tokens."),
    "instant": (INSTANT, "False At most 4096 tokens.\n"),
    "tools": (TOOLS, "Riga\nOslo\nAt most 32768 tokens.\n"),
}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """Any model, told on the command line to stand for K2.6."""
    entry = msgspec.structs.replace(
        scripted_entry("mine"), context_length=262144, max_output_tokens=32768, sampling_policy="strict"
    )
    async with serving(tmp_path, kimi(entry), serve_as="kimi-k2.6") as api:
        yield api


def run(code: str) -> str:
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, names)
    names["client"].close()
    return said.getvalue()


@pytest.mark.parametrize("name", SNIPPETS)
async def test_a_snippet_runs_with_nothing_but_the_address_changed(
    api: Api, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONSHOT_API_KEY", api.key)
    code, said = SNIPPETS[name]
    code = code.replace("https://api.moonshot.ai/v1", api.url).replace("$MOONSHOT_API_KEY", api.key)
    for model in IDS:
        assert await asyncio.to_thread(run, code.replace("MODEL", model)) == said
    assert set(api.rows()) == {"finished"}


@pytest.mark.parametrize("model", IDS)
async def test_the_shell_s_snippet_too(api: Api, model: str) -> None:
    code = CURL.replace("https://api.moonshot.ai/v1", api.url).replace("MODEL", model)
    shell = await asyncio.create_subprocess_exec(
        "bash", "-ec", code, env={**os.environ, "MOONSHOT_API_KEY": api.key}, stdout=PIPE
    )
    said, _ = await shell.communicate()
    answer = json.loads(said)
    assert (answer["model"], answer["object"]) == (model, "chat.completion")
    assert answer["choices"][0]["message"]["content"] == "At most 32768 tokens."


async def test_the_name_that_was_asked_for_is_repeated(api: Api) -> None:
    def ask() -> list[str]:
        with OpenAI(api_key=api.key, base_url=api.url) as client:
            hello: Any = [{"role": "user", "content": "Hello"}]
            found = [client.models.retrieve(name).id for name in IDS]
            listed = [model.id for model in client.models.list()]
            answers = [client.chat.completions.create(model=name, messages=hello).model for name in IDS]
            return [*found, *listed, *answers]

    assert await asyncio.to_thread(ask) == [*IDS, "mine", "kimi-k2.6", *IDS]
