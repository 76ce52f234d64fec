"""Images and video through template, decoding and the real engine process, on a random tiny checkpoint."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import pytest_asyncio
from tests.chat.media_files import noise, png, png_head, url_of, video

from perilune.backends.base import complete
from perilune.backends.embedded import EmbeddedBackend
from perilune.backends.seeing import Seeing
from perilune.chat.media import Item
from perilune.chat.messages import ImagePart, Message, Part, Request, TextPart, VideoPart
from perilune.chat.tokenizer import Tokenizer
from perilune.errors import CheckpointError, ContextTooLong, InputError, UnsupportedInput
from perilune.model.make import make_checkpoint
from perilune.model.shapes import SHAPES
from perilune.model.tiny import write_byte_tokenizer, write_tiny_checkpoint
from perilune.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Seeing"
    make_checkpoint(SHAPES["tiny"](), folder, tokenizer=write_byte_tokenizer, hashes=False)
    card = {"id": "seeing", "context_length": 900, "max_output_tokens": 50}
    (folder / "perilune.json").write_text(json.dumps(card))
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(folder: Path) -> AsyncIterator[EmbeddedBackend]:
    settings = Settings(home=folder / "home", checkpoint=str(folder), threads=1, cache_tokens=4096)
    backend = await EmbeddedBackend.start(settings)
    yield backend
    await backend.close()


def asked(*parts: Part, **fields: object) -> Request:
    request = Request(
        model="seeing",
        messages=(Message(role="user", content=(*parts, TextPart("What is it?"))),),
        thinking=False,
        max_tokens=12,
        temperature=0.0,
    )
    return msgspec.structs.replace(request, **fields)


def image(seed: int, width: int = 56, height: int = 84) -> ImagePart:
    return ImagePart(url_of(png(noise(width, height, seed))))


async def test_the_entry_says_that_it_sees(backend: EmbeddedBackend) -> None:
    assert (await backend.models())[0].modalities == ("text", "image", "video")


async def test_an_image_counts_its_tokens_and_is_found_again(backend: EmbeddedBackend) -> None:
    request = asked(image(1))
    counted = await backend.count_tokens(request)
    plain = await backend.count_tokens(asked())
    # Six tokens of pixels, four of markers and their word as bytes, one newline.
    assert counted is not None and plain is not None
    assert counted == plain + 6 + 3 + len("image") + 1
    first = await complete(backend, request)
    assert first.usage.prompt_tokens == counted
    again = await complete(backend, request)
    assert again.message == first.message
    assert again.usage.cached_tokens == (counted - 1) // 8 * 8


async def test_what_is_seen_matters_and_its_file_does_not(backend: EmbeddedBackend) -> None:
    one = await complete(backend, asked(image(1)))
    other = await complete(backend, asked(image(2)))
    assert other.usage.cached_tokens < 24
    assert one.message != other.message
    as_bmp = ImagePart(url_of(png(noise(56, 84, 1), format="BMP"), "image/bmp"))
    assert (await complete(backend, asked(as_bmp))).message == one.message


async def test_video_and_images_together(backend: EmbeddedBackend) -> None:
    clip = VideoPart(url_of(video(25), "video/mp4"))
    request = asked(TextPart("first"), clip, image(3), TextPart("then"), image(4))
    counted = await backend.count_tokens(request)
    answer = await complete(backend, request)
    assert answer.usage.prompt_tokens == counted
    assert answer.usage.completion_tokens > 0


async def test_many_calls_with_images_at_once(backend: EmbeddedBackend) -> None:
    requests = [asked(image(seed), cache_salt=str(seed)) for seed in range(5, 11)]
    alone = [await complete(backend, request) for request in requests]
    together = await asyncio.gather(*(complete(backend, request) for request in requests))
    assert [one.message for one in together] == [one.message for one in alone]
    assert not backend._seeing._open_bytes


async def test_a_thinking_budget_goes_on_with_the_same_image(backend: EmbeddedBackend) -> None:
    answer = await complete(backend, asked(image(1), thinking=True, thinking_budget=4, max_tokens=20))
    assert answer.usage.reasoning_tokens <= 4
    assert answer.usage.completion_tokens > 5


@pytest.mark.parametrize(
    ("part", "match"),
    [
        (ImagePart(url_of(b"no image")), r"messages\[0\].content\[0\]: is not an image"),
        (ImagePart(url_of(png_head(1, 10_000))), "one side more than 200"),
        (ImagePart(url_of(png_head(10_000, 10_000))), "far more|at most"),
        (ImagePart(url_of(png_head(100, 100, b"x"))), "cannot be decoded"),
        (VideoPart(url_of(video(0), "video/mp4")), "no frames|no video|cannot be read"),
    ],
)
async def test_bad_media_is_refused_and_the_engine_goes_on(
    backend: EmbeddedBackend, part: Part, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        await complete(backend, asked(part))
    assert not backend._seeing._open_bytes
    assert (await complete(backend, asked(image(1)))).usage.completion_tokens > 0


async def test_too_large_for_the_context_is_refused_before_it_is_decoded(backend: EmbeddedBackend) -> None:
    """The pixels of this file are not even there."""
    with pytest.raises(ContextTooLong, match=r"limit: 900 \(requested: 42"):
        await complete(backend, asked(ImagePart(url_of(png_head(2000, 2000)))))


async def test_a_model_without_vision_refuses_and_one_without_pillow_tells(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_checkpoint(tmp_path, tokenizer=True)
    blind = Seeing.of(tmp_path, Tokenizer.load(tmp_path))
    assert blind.modalities == ("text",)
    with pytest.raises(UnsupportedInput, match="reads text only, no image"):
        await blind.plan(asked(image(1)))
    Seeing.of(folder, Tokenizer.load(folder))
    assert not caplog.records
    monkeypatch.setattr("perilune.backends.seeing.find_spec", lambda name: None)
    without = Seeing.of(folder, Tokenizer.load(folder))
    assert "sees more than text: pip install 'perilune[media]'" in caplog.text
    with pytest.raises(UnsupportedInput, match=r"reads text only.*perilune\[media\]"):
        await without.plan(asked(image(1)))
    monkeypatch.setattr("perilune.backends.seeing.find_spec", lambda name: None if name == "av" else object())
    stills = Seeing.of(folder, Tokenizer.load(folder))
    with pytest.raises(UnsupportedInput, match=r"images only, no video.*perilune\[media\]"):
        await stills.plan(asked(VideoPart("data:")))


async def test_rules_for_another_tower_are_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tiktoken.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "preprocessor_config.json").write_text('{"media_proc_cfg": {"patch_size": 16}}')
    with pytest.raises(CheckpointError, match="disagree"):
        Seeing.of(tmp_path, Tokenizer.load(tmp_path))


async def test_media_wait_for_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perilune.backends.seeing.MOST_OPEN_BYTES", 20_000)
    tokenizer = Tokenizer.load(folder)
    seeing = Seeing.of(folder, tokenizer)
    request = asked(image(1))
    media = await seeing.plan(request)
    prompt = await seeing.prompt(request, tokenizer, media)
    assert media[0].patch_bytes == 56 * 84 * 3 > 10_000
    async with seeing.decoded(media, prompt) as (seen,):
        assert np.frombuffer(seen.patches, np.uint8).size == media[0].patch_bytes
        second = asyncio.create_task(_decode(seeing, media, prompt))
        await asyncio.sleep(0.05)
        assert not second.done()
    assert await asyncio.wait_for(second, 5)


async def test_a_call_that_is_gone_decodes_no_further(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    seeing = Seeing.of(folder, tokenizer)
    request = asked(image(1))
    (still,) = await seeing.plan(request)
    prompt = await seeing.prompt(request, tokenizer, [still])
    begun, go_on, decoded = threading.Event(), threading.Event(), []

    class Long:
        patch_bytes = still.patch_bytes

        def items(self) -> Iterator[Item]:
            for number in range(100):
                begun.set()
                go_on.wait(5)
                decoded.append(number)
                yield from still.items()

    call = asyncio.create_task(_decode(seeing, [Long()], prompt))
    assert await asyncio.to_thread(begun.wait, 5)
    call.cancel()
    await asyncio.wait({call})
    go_on.set()
    await asyncio.to_thread(seeing._decoders.shutdown)
    assert decoded == [0]


async def _decode(seeing: Seeing, media: object, prompt: object) -> bool:
    async with seeing.decoded(media, prompt) as seen:  # type: ignore[arg-type]
        return bool(seen)
