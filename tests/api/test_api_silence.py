"""Comments into the silences of a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from api_server import Strange, serving

from perilune.api import event_stream
from perilune.chat.messages import Event, Finished, Request, TextDelta, Usage
from perilune.errors import EngineGone

HI: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
CHAT = "/v1/chat/completions"


class Thoughtful(Strange):
    """Silent before each word, and after the last one; fails at the end if told so."""

    def __init__(self, *pauses: float, fails: bool = False) -> None:
        super().__init__()
        self._pauses = pauses
        self._fails = fails

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        for pause in self._pauses[:-1]:
            await asyncio.sleep(pause)
            yield TextDelta("word ")
        await asyncio.sleep(self._pauses[-1])
        if self._fails:
            raise EngineGone("it died")
        yield Finished("stop", Usage(prompt_tokens=7, completion_tokens=2))


async def said(home: Path, backend: Strange) -> tuple[int, str]:
    async with serving(home, backend) as api, aiohttp.ClientSession() as web:
        async with web.post(api.root + CHAT, json=HI, headers=api.auth) as answer:
            return answer.status, (await answer.read()).decode()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    assert event_stream.QUIET_S == 15
    monkeypatch.setattr(event_stream, "QUIET_S", 0.2)


async def test_a_silence_is_filled_before_and_between_words(tmp_path: Path) -> None:
    status, text = await said(tmp_path, Thoughtful(0.7, 0.0, 0.7, 0.0))
    frames = text.strip().split("\n\n")
    comments = [frame.startswith(":") for frame in frames]
    assert status == 200 and frames[-1] == "data: [DONE]"
    assert comments[0] and any(comments[3:]) and 4 <= sum(comments) <= 7
    words = [json.loads(frame[6:]) for frame in frames[:-1] if frame.startswith("data")]
    assert "".join(word["choices"][0]["delta"].get("content", "") for word in words) == "word word word "


async def test_a_stream_that_is_never_silent_has_none(tmp_path: Path) -> None:
    _, text = await said(tmp_path, Thoughtful(*[0.02] * 30))
    assert ": " not in text.replace('": ', "").replace("data: ", "")


async def test_clients_pass_over_them(tmp_path: Path) -> None:
    async with serving(tmp_path, Thoughtful(0.5, 0.5)) as api:
        async with openai.AsyncOpenAI(base_url=api.url, api_key=api.key) as ai:
            stream = await ai.chat.completions.create(**HI)
            chunks = [chunk async for chunk in stream]
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == "word "


@pytest.mark.parametrize(("pause", "status"), [(0.0, 503), (0.5, 200)])
async def test_an_error_has_its_status_until_the_first_comment(
    tmp_path: Path, pause: float, status: int
) -> None:
    got, text = await said(tmp_path, Thoughtful(pause, fails=True))
    assert got == status and "it died" in text and "[DONE]" not in text


async def test_a_client_that_leaves_in_a_silence_ends_the_call(tmp_path: Path) -> None:
    async with serving(tmp_path, Thoughtful(60.0)) as api, aiohttp.ClientSession() as web:
        async with web.post(api.root + CHAT, json=HI, headers=api.auth) as answer:
            assert await answer.content.readuntil(b"\n\n") == event_stream.COMMENT
            answer.close()
        async with asyncio.timeout(10):
            while api.rows() != ["aborted"]:  # noqa: ASYNC110  it lies in the database
                await asyncio.sleep(0.02)
