"""Images in prompts through the whole engine but the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perilune.engine.loop import Engine
from perilune.engine.protocol import Chunk, EngineOptions, Failed, Generate, Seen, Vocabulary
from perilune.engine.sight import Sight
from perilune.model.attention import CausalAttention
from perilune.model.load import load_model
from perilune.model.load_vision import load_vision
from perilune.model.make import make_checkpoint
from perilune.model.shapes import SHAPES
from perilune.model.text import TextDecoder
from perilune.model.tiny import random_decoder
from perilune.model.vision import Grid, Vision, normalised

NO_BYTES = Vocabulary(tokens=(), special_ids=(), eos_id=0)
PAD = 272


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextDecoder, Vision]:
    folder = tmp_path_factory.mktemp("seeing") / "checkpoint"
    document = SHAPES["tiny"]()
    make_checkpoint(document, folder, seed=1)
    vision = load_vision(folder)
    assert vision
    return load_model(folder), vision


def make(model: tuple[TextDecoder, Vision], **options: Any) -> Engine:
    wanted = {"checkpoint": "", "threads": 1, "cache_tokens": 800, "block_size": 4} | options
    return Engine(model[0], EngineOptions(**wanted), NO_BYTES, model[1])


def seen(start: int, seed: int, grid: tuple[int, int, int] = (1, 4, 6), **changed: Any) -> Seen:
    patches = np.random.default_rng(seed).integers(0, 256, (int(np.prod(grid)), 3, 14, 14), dtype=np.uint8)
    return Seen(
        **({"start": start, "key": bytes([seed] * 16), "grid": grid, "patches": patches.tobytes()} | changed)
    )


def prompt(*places: tuple[int, int], length: int = 40) -> tuple[int, ...]:
    """Text with placeholders at (start, count)."""
    tokens = list(range(1, length + 1))
    for start, count in places:
        tokens[start : start + count] = [PAD] * count
    return tuple(tokens)


def finish(engine: Engine) -> dict[int, list[Chunk]]:
    replies: dict[int, list[Chunk]] = {}
    while engine.busy:
        for reply in engine.step():
            assert isinstance(reply, Chunk)
            replies.setdefault(reply.id, []).append(reply)
    return replies


def answer(engine: Engine, call: Generate) -> tuple[tuple[int, ...], int]:
    """Tokens and cached tokens."""
    assert engine.submit(call) == []
    chunks = finish(engine)[call.id]
    return tuple(token for chunk in chunks for token in chunk.token_ids), chunks[0].cached_tokens


def call(id: int, *media: Seen, salt: str = "", max_tokens: int = 6, length: int = 40) -> Generate:
    places = [(one.start, one.grid[1] * one.grid[2] // 4) for one in media]
    tokens = prompt(*places, length=length)
    return Generate(id=id, prompt=tokens, max_tokens=max_tokens, cache_salt=salt, media=media)


def test_the_answer_is_that_of_embeddings_in_their_places(model: tuple[TextDecoder, Vision]) -> None:
    """Greedy tokens against the plain forward, an image and a clip among text, prefilled in small chunks."""
    decoder, vision = model
    media = (seen(5, 1), seen(20, 2, (3, 4, 4)))
    wanted = list(prompt((5, 6), (20, 4)))
    rows = torch.cat([torch.arange(5, 11), torch.arange(20, 24)])
    embeddings = []
    for one in media:
        raw = torch.frombuffer(bytearray(one.patches), dtype=torch.uint8).view(-1, 3, 14, 14)
        embeddings.append(vision(normalised(raw), Grid(*one.grid)))
    for _ in range(6):
        ids = torch.tensor(wanted)
        attend = CausalAttention(1, len(ids))
        hidden = decoder(ids, torch.arange(len(ids)), attend, placed=(rows, torch.cat(embeddings)))
        wanted.append(int(decoder.logits(hidden[-1:]).argmax()))
    for chunk in (7, 2048):
        engine = make(model, max_batch_tokens=chunk, max_sequences=4)
        assert answer(engine, call(1, *media))[0] == tuple(wanted[40:])
        assert engine.sight.computed == 2


def test_cache_blocks_are_shared_by_equal_content_only(model: tuple[TextDecoder, Vision]) -> None:
    engine = make(model)
    first, cached = answer(engine, call(1, seen(5, 1)))
    assert cached == 0
    again, cached = answer(engine, call(2, seen(5, 1)))
    assert again == first and cached == 36
    # Another picture in the same place: only the text before it is known.
    other, cached = answer(engine, call(3, seen(5, 9)))
    assert cached == 4 and other != first
    # The same picture elsewhere, and no picture at all.
    assert answer(engine, call(4, seen(8, 1)))[1] == 4
    plain = Generate(id=5, prompt=prompt((5, 6)), max_tokens=6)
    assert answer(engine, plain)[1] == 4
    engine.stats()


def test_what_was_seen_is_not_computed_again_within_a_salt(model: tuple[TextDecoder, Vision]) -> None:
    engine = make(model)
    for id, salt, computed in ((1, "a", 1), (2, "a", 1), (3, "b", 2), (4, "a", 2)):
        # The text before differs, so that no block is found.
        one = call(id, seen(6, 1), salt=salt)
        answer(engine, Generate(**{**_fields(one), "prompt": (100 + id, *one.prompt[1:])}))
        assert engine.sight.computed == computed


def _fields(one: Generate) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__struct_fields__}


def test_a_covered_image_is_not_even_looked_at(model: tuple[TextDecoder, Vision]) -> None:
    engine = make(model)
    answer(engine, call(1, seen(5, 1)))
    engine.sight._kept.clear()
    answer(engine, call(2, seen(5, 1)))
    assert engine.sight.computed == 1


def test_kept_embeddings_are_bounded(model: tuple[TextDecoder, Vision]) -> None:
    engine = make(model)
    engine.sight._most = 6 * 64 * 4 * 2
    for seed in range(1, 6):
        answer(engine, call(seed, seen(0, seed)))
    assert len(engine.sight._kept) == 2
    assert engine.sight._kept_bytes == 6 * 64 * 4 * 2


def test_text_and_images_run_together_and_change_nothing(model: tuple[TextDecoder, Vision]) -> None:
    calls = [call(1, seen(5, 1)), call(2), call(3, seen(0, 2), seen(6, 3)), call(4, seen(30, 4))]
    alone = [answer(make(model), one)[0] for one in calls]
    engine = make(model, max_batch_tokens=16, max_sequences=4)
    for one in calls:
        assert engine.submit(one) == []
    replies = finish(engine)
    together = [tuple(t for chunk in replies[one.id] for t in chunk.token_ids) for one in calls]
    assert together == alone


def test_preempted_calls_see_the_same_again(model: tuple[TextDecoder, Vision]) -> None:
    calls = [call(id, seen(5, id), max_tokens=30) for id in (1, 2, 3)]
    alone = [answer(make(model), one)[0] for one in calls]
    engine = make(model, cache_tokens=140)
    for one in calls:
        assert engine.submit(one) == []
    replies = finish(engine)
    assert engine.stats().preemptions > 0
    assert [tuple(t for chunk in replies[one.id] for t in chunk.token_ids) for one in calls] == alone


@pytest.mark.parametrize(
    ("media", "match"),
    [
        ((seen(35, 1),), "place of their own"),
        ((seen(-1, 1),), "place of their own"),
        ((seen(5, 1), seen(8, 2)), "place of their own"),
        ((seen(9, 1), seen(0, 2)), "place of their own"),
        ((seen(5, 1, (1, 3, 4)),), "3 by 4 patches"),
        ((seen(5, 1, (5, 2, 2)),), "5 frames"),
        ((seen(5, 1, patches=b"x"),), "1 bytes, not those of 24 patches"),
    ],
)
def test_media_that_do_not_fit_are_refused(
    model: tuple[TextDecoder, Vision], media: tuple[Seen, ...], match: str
) -> None:
    engine = make(model)
    (reply,) = engine.submit(Generate(id=1, prompt=prompt(), max_tokens=2, media=media))
    assert isinstance(reply, Failed) and match in reply.message
    assert reply.code == "invalid_request_error"
    assert not engine.busy


def test_a_model_without_eyes_says_so() -> None:
    options = EngineOptions(checkpoint="", threads=1, cache_tokens=400, block_size=4)
    engine = Engine(random_decoder(), options, NO_BYTES)
    (reply,) = engine.submit(call(1, seen(5, 1)))
    assert isinstance(reply, Failed) and "sees no images" in reply.message


def test_the_checkpoint_decides_whether_there_are_eyes(tmp_path: Path) -> None:
    make_checkpoint(SHAPES["tiny"](), tmp_path / "one")
    engine = Engine.load(EngineOptions(checkpoint=str(tmp_path / "one"), threads=1), NO_BYTES)
    assert "images and video" in engine.ready.notes
    assert isinstance(engine.sight, Sight)
