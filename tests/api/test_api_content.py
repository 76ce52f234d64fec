"""`content` is a string in every answer, whatever stands behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from api_server import serving
from tests.backends.loopback import GOOD_CHUNKS, STREAM_HEAD, USAGE, Endpoint, answer, chunk, raw

from perilune.backends.base import Backend, ModelEntry
from perilune.backends.scripted import ScriptedBackend, scripted_entry, usage_of
from perilune.backends.upstream import UpstreamBackend
from perilune.chat.messages import Completion, Message, Request

NOTHING = {"role": "assistant", "content": None}
CALLS = [{"id": "f:0", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize("more", [{}, {"reasoning_content": "Hm."}, {"tool_calls": CALLS}], ids=str)
@pytest.mark.parametrize("streamed", [True, False])
async def test_content_is_text_where_the_endpoint_sends_null(
    tmp_path: Path, streamed: bool, more: dict[str, object]
) -> None:
    message: dict[str, Any] = NOTHING | more
    if streamed:
        deltas = message | {"tool_calls": [{"index": 0, **call} for call in message.get("tool_calls", ())]}
        far = raw(
            STREAM_HEAD
            + chunk(delta=deltas, finish_reason=None)
            + chunk(delta={"content": None}, finish_reason="stop", usage=USAGE)
            + GOOD_CHUNKS[-1]
        )
    else:
        far = answer({"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": USAGE})
    entry = ModelEntry(id="mine", backend="upstream", context_length=1000, max_output_tokens=100)
    async with Endpoint([far]) as endpoint:
        backend = UpstreamBackend(endpoint.url, entry=entry)
        said = await asked_both_ways(tmp_path, backend)
        await backend.close()
    assert said["content"] == "" and said.get("reasoning_content") == more.get("reasoning_content")
    assert ("tool_calls" in said) == ("tool_calls" in more)


async def test_content_is_text_where_a_backend_has_none(tmp_path: Path) -> None:
    def silent(request: Request) -> Completion:
        message = Message(role="assistant", content=None, reasoning="Hm.")
        return Completion(message=message, finish_reason="length", usage=usage_of(request, message))

    said = await asked_both_ways(tmp_path, ScriptedBackend(silent, entry=scripted_entry("mine")))
    assert said == {"role": "assistant", "content": "", "reasoning_content": "Hm."}


async def asked_both_ways(home: Path, backend: Backend) -> dict[str, Any]:
    """The message of the whole answer; the text of the streamed one must be empty, and never null."""
    asked = {"model": "mine", "messages": [{"role": "user", "content": "Hi"}]}
    async with serving(home, backend) as api, aiohttp.ClientSession(headers=api.auth) as session:
        url = f"{api.url}/chat/completions"
        async with session.post(url, json=asked) as response:
            said: dict[str, Any] = (await response.json())["choices"][0]["message"]
        async with session.post(url, json=asked | {"stream": True}) as response:
            lines = (await response.text()).split("\n\n")
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-2]]
    assert lines[-2] == "data: [DONE]" and len(deltas) >= 2
    assert {delta["content"] for delta in deltas if "content" in delta} == {""}
    return said
