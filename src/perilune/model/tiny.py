"""Random small checkpoints in the official layout, for tests and benchmarks. They say nothing sensible."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from perilune.model.config import Int4, TextConfig, Yarn
from perilune.model.text import TextDecoder
from perilune.model.writer import write_checkpoint

SPECIAL_TOKENS = (
    "[BOS]",
    "[EOS]",
    "<|im_end|>",
    "<|im_user|>",
    "<|im_assistant|>",
    "[EOT]",
    "<|im_system|>",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|im_middle|>",
    "<|media_begin|>",
    "<|media_content|>",
    "<|media_end|>",
    "<|media_pad|>",
    "<think>",
    "</think>",
    "[UNK]",
    "[PAD]",
)
PLAIN_MARKERS = ("<|tool_call", "<think>", "</think>")
"""Added tokens with these beginnings are not `special` in the official tokenizer_config.json."""

TINY = TextConfig(
    vocab_size=256 + len(SPECIAL_TOKENS),
    hidden_size=64,
    intermediate_size=96,
    moe_intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    kv_lora_rank=16,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
    n_routed_experts=8,
    num_experts_per_tok=2,
    q_lora_rank=24,
    routed_scaling_factor=2.827,
    yarn=Yarn(factor=64.0, original_max_position_embeddings=4096),
    max_position_embeddings=262144,
    initializer_range=0.1,
    bos_token_id=256,
    eos_token_id=258,
    pad_token_id=256 + len(SPECIAL_TOKENS) - 1,
    quantization=Int4(group_size=32),
)
"""All of K2.6's code paths at 0.1 M parameters; the vocabulary is that of write_byte_tokenizer."""


def random_decoder(config: TextConfig = TINY, seed: int = 0) -> TextDecoder:
    """A decoder with random weights and selection biases, the same for the same seed; evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = TextDecoder(config)
        for router in decoder.routers:
            router.e_score_correction_bias.normal_(std=0.1)
        for name, parameter in decoder.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return decoder.requires_grad_(False).eval()


def write_tiny_checkpoint(
    folder: Path, config: TextConfig = TINY, *, seed: int = 0, int4: bool = True, tokenizer: bool = False
) -> TextConfig:
    """Write random_decoder(config, seed) to `folder`; returns the config that a reader will find."""
    config = replace(config, quantization=(config.quantization or Int4()) if int4 else None)
    write_checkpoint(random_decoder(config, seed).state_dict(), config, folder, shard_bytes=100_000)
    if tokenizer:
        write_byte_tokenizer(folder)
    return config


def write_byte_tokenizer(folder: Path) -> None:
    """A tokenizer of one token per byte."""
    write_tokenizer([bytes([byte]) for byte in range(256)], folder)


def write_tokenizer(tokens: Sequence[bytes], folder: Path) -> None:
    """tiktoken.model and tokenizer_config.json: the tokens by rank, then SPECIAL_TOKENS."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (folder / "tiktoken.model").write_text("".join(ranks), encoding="ascii")
    added = {
        str(len(tokens) + place): {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": not name.startswith(PLAIN_MARKERS),
        }
        for place, name in enumerate(SPECIAL_TOKENS)
    }
    document = {
        "added_tokens_decoder": added,
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "tokenizer_class": "TikTokenTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
