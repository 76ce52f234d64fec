"""Images and video over HTTP, as the openai SDK sends them, to our own engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from api_server import serving
from openai import AsyncOpenAI
from tests.chat.hostile_media import jpeg_of_scans, jpegs, png_with_note, with_size_in_avi
from tests.chat.media_files import noise, png, png_head, url_of, video

from perilune.backends.embedded import EmbeddedBackend
from perilune.model.make import make_checkpoint
from perilune.model.shapes import SHAPES
from perilune.model.tiny import write_byte_tokenizer
from perilune.settings import Settings

OFF: dict[str, Any] = {"thinking": {"type": "disabled"}}
TEXT = {"type": "text", "text": "What is it?"}
IMAGE = {"type": "image_url", "image_url": {"url": url_of(png(noise(56, 56)))}}
VIDEO = {"type": "video_url", "video_url": {"url": url_of(video(25), "video/mp4")}}


def said(*parts: dict[str, Any]) -> Any:
    return [{"role": "user", "content": list(parts)}]


async def test_media_over_http(tmp_path: Path) -> None:
    folder = tmp_path / "Seeing"
    make_checkpoint(SHAPES["tiny"](), folder, tokenizer=write_byte_tokenizer, hashes=False)
    card = {"id": "seeing", "context_length": 600, "max_output_tokens": 100}
    (folder / "perilune.json").write_text(json.dumps(card))
    settings = Settings(home=tmp_path, checkpoint=str(folder), threads=1, cache_tokens=4096)
    backend = await EmbeddedBackend.start(settings)
    try:
        async with serving(tmp_path / "home", backend) as api:
            async with AsyncOpenAI(base_url=api.url, api_key=api.key, max_retries=0) as ai:
                (listed,) = (await ai.models.list()).data
                assert listed.supports_image_in is True  # type: ignore[attr-defined]
                assert listed.supports_video_in is True  # type: ignore[attr-defined]
                await answers(ai)
                await uploaded(ai)
                await refusals(ai)
                await hostile(ai)
    finally:
        await backend.close()


async def answers(ai: AsyncOpenAI) -> None:
    sizes = []
    for parts in ((TEXT,), (IMAGE, TEXT), (VIDEO, IMAGE, TEXT)):
        options: Any = {"model": "seeing", "messages": said(*parts), "max_tokens": 8, "extra_body": OFF}
        whole = await ai.chat.completions.create(**options)
        assert whole.usage is not None
        sizes.append(whole.usage.prompt_tokens)
        stream = await ai.chat.completions.create(**options, stream=True)
        assert [chunk async for chunk in stream]
    one_image = 4 + 3 + len("image") + 1
    pieces = 2 * (6 + 3 + len("video") + len("00:00:00.000")) + 1
    assert sizes == [sizes[0], sizes[0] + one_image, sizes[0] + one_image + pieces]


async def uploaded(ai: AsyncOpenAI) -> None:
    """An uploaded image is the same to the engine as its data URL."""
    file = await ai.files.create(file=("noise.png", png(noise(56, 56))), purpose="image")  # type: ignore[arg-type]
    named = {"type": "image_url", "image_url": {"url": f"ms://{file.id}"}}
    said_of = []
    for part in (IMAGE, named):
        options: Any = {"model": "seeing", "messages": said(part, TEXT), "max_tokens": 8, "extra_body": OFF}
        whole = await ai.chat.completions.create(**options, seed=1)
        assert whole.usage is not None
        said_of.append((whole.choices[0].message.content, whole.usage.prompt_tokens))
    assert said_of[0] == said_of[1]


async def refusals(ai: AsyncOpenAI) -> None:
    for part, words in (
        ({"type": "image_url", "image_url": "https://x/y.png"}, "only data URLs"),
        ({"type": "image_url", "image_url": url_of(b"nothing")}, "is not an image"),
        ({"type": "video_url", "video_url": url_of(b"nothing")}, "is not a video"),
    ):
        with pytest.raises(openai.BadRequestError, match=rf"messages\[0\].content\[1\].*{words}"):
            await ai.chat.completions.create(model="seeing", messages=said(TEXT, part), extra_body=OFF)


async def hostile(ai: AsyncOpenAI) -> None:
    """Each in the third message: 400 with its place and the mend, and the engine answers as before."""
    for data, words in (
        (png_head(10_000, 10_000), r"more than the 50,000,000 pixels.*make it smaller"),
        (png_head(1, 10_000), r"one side more than 200 times.*cut it into several"),
        (png_with_note(b"iCCP", 50_000_000), r"its head is damaged.*saved anew"),
        (png_with_note(b"zTXt", 50_000_000, last=True), r"cannot be decoded.*save it anew"),
        (jpeg_of_scans(1000, 3000), r"far more parts.*save it anew"),
        (video(0, container="avi"), r"no frames.*save it anew"),
        (with_size_in_avi(jpegs("avi"), 20_000, 20_000), r"20000 by 20000 pixels.*make it smaller"),
        (b"\0\0\0\x20ftyp" + video(5, container="avi"), r"cannot be read.*save it anew"),
    ):
        kind = "image_url" if data.startswith((b"\x89PNG", b"\xff\xd8")) else "video_url"
        part = {"type": kind, kind: {"url": url_of(data)}}
        messages: Any = [*said(TEXT), {"role": "assistant", "content": "x"}, *said(part, TEXT)]
        with pytest.raises(openai.BadRequestError, match=rf"messages\[2\].content\[0\].*{words}"):
            await ai.chat.completions.create(model="seeing", messages=messages, extra_body=OFF)
    whole = await ai.chat.completions.create(
        model="seeing", messages=said(IMAGE, TEXT), max_tokens=4, extra_body=OFF
    )
    assert whole.usage and whole.usage.completion_tokens
