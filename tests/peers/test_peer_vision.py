"""Images and video: our engine and vLLM's own code for K2.5, asked for the same greedy tokens.

Each gets the pictures and prepares them by itself: sizes, padding, patches and normalisation are compared
too. Only a video is cut into frames by us, since vLLM's way to cut one is that of its server.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import pytest
from peer_engines import K26_HEADS, PATCH, agree, compare, of_vllm, our_tokens, python_of
from scripts.hf_copy import write_hf
from tests.chat.media_files import noise, png, url_of, video

from perilune.backends.seeing import Seeing
from perilune.chat.media_rules import RULES_FILE, MediaRules
from perilune.chat.messages import ImagePart, Message, Request, TextPart, VideoPart
from perilune.chat.template import MEDIA_PAD
from perilune.chat.tokenizer import Tokenizer
from perilune.engine.protocol import Seen
from perilune.model.make import make_checkpoint
from perilune.model.shapes import SHAPES
from perilune.model.tiny import write_byte_tokenizer

pytestmark = pytest.mark.peers

TOKENS = 30
RULES = MediaRules(in_patch_limit=100, in_patch_limit_each_frame=40)
"""So that images of a few tokens are already made smaller."""
Content: TypeAlias = np.ndarray | bytes | str
"""An image's pixels, a video's file, or text."""
CONTENTS: dict[str, list[Content]] = {
    "one": ["What is this?", noise(84, 56, 1)],
    "padded": [noise(97, 41, 2), "And this?"],
    "several": ["First", noise(28, 28, 5), "then", noise(140, 30, 6), "and", noise(60, 120, 7)],
    "small": [noise(3, 5, 8), "!"],
    "made smaller": ["How large is", noise(300, 210, 4), "?"],
    "video": ["Watch:", video(9, fps=2)],
    "mixed": [noise(50, 50, 9), "before", video(5, fps=2, size=(32, 64)), "after"],
    "none": ["Nothing to see."],
}


@dataclass(frozen=True)
class Shown:
    prompt: list[int]
    """With each placeholder repeated, as our engine gets it."""
    folded: list[int]
    """With one placeholder for each item, as vLLM gets it."""
    seen: tuple[Seen, ...]
    frames: list[list[str]]
    """Of each item, PNG in base64."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """K2.6's attention heads, everything else small, INT4 experts and random weights."""
    python_of("vllm")
    document = SHAPES["tiny"]()
    document["text_config"] |= K26_HEADS
    folder = tmp_path_factory.mktemp("seeing") / "Seeing"
    make_checkpoint(document, folder, tokenizer=write_byte_tokenizer, hashes=False)
    rules = {"media_proc_cfg": msgspec.to_builtins(RULES)}
    (folder / RULES_FILE).write_bytes(msgspec.json.encode(rules))
    return folder


async def show(contents: Sequence[Content], seeing: Seeing, tokenizer: Tokenizer) -> Shown:
    parts = tuple(part_of(one) for one in contents)
    request = Request(model="m", messages=(Message(role="user", content=parts),), thinking=False)
    media = await seeing.plan(request)
    prompt = await seeing.prompt(request, tokenizer, media)
    async with seeing.decoded(media, prompt) as seen:
        items = iter(seen)
    frames: list[list[bytes]] = []
    for source, planned in zip([one for one in contents if not isinstance(one, str)], media, strict=True):
        pieces = list(itertools.islice(items, len(planned.tokens)))
        frames += [[png(source)]] if isinstance(source, np.ndarray) else map(frames_of, pieces)
    pad = tokenizer.special(MEDIA_PAD)
    counts = [count for one in media for count in one.tokens]
    repeated = {
        start + further
        for start, count in zip(prompt.starts, counts, strict=True)
        for further in range(1, count)
    }
    folded = [token for place, token in enumerate(prompt.ids) if place not in repeated]
    assert folded.count(pad) == len(seen) == len(frames)
    return Shown(
        prompt.ids, folded, seen, [[base64.b64encode(one).decode() for one in item] for item in frames]
    )


def part_of(content: Content) -> TextPart | ImagePart | VideoPart:
    match content:
        case str():
            return TextPart(content)
        case bytes():
            return VideoPart(url_of(content, "video/mp4"))
        case _:
            return ImagePart(url_of(png(content)))


def frames_of(piece: Seen) -> list[bytes]:
    """Its patches put together again."""
    frames, rows, columns = piece.grid
    patches = np.frombuffer(piece.patches, np.uint8).reshape(frames, rows, columns, 3, PATCH, PATCH)
    pictures = patches.transpose(0, 1, 4, 2, 5, 3).reshape(frames, rows * PATCH, columns * PATCH, 3)
    return [png(np.ascontiguousarray(one)) for one in pictures]


async def test_vllm_sees_what_we_see(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(checkpoint)
    seeing = Seeing.of(checkpoint, tokenizer)
    shown = [await show(contents, seeing, tokenizer) for contents in CONTENTS.values()]
    write_hf(checkpoint, tmp_path / "seeing")
    prompts, seen = [one.prompt for one in shown], [one.seen for one in shown]
    theirs = of_vllm(
        tmp_path / "seeing",
        [one.folded for one in shown],
        TOKENS,
        (),
        latent=True,
        context=max(map(len, prompts)) + TOKENS + 1,
        media=[one.frames for one in shown],
    )
    ours = await our_tokens(checkpoint, prompts, TOKENS, (), seen)
    agree(compare(checkpoint, prompts, ours, theirs, seen), tokens=TOKENS * len(CONTENTS) - TOKENS)
