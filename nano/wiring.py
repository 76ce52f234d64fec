"""The weights before training: random, but for a copying circuit of two attention heads.

Layer 0, head 0 looks one token back: its queries and keys read a dimension of the embedding that is the
same for all tokens, the keys turned one position further. It writes a projection of the token before into
the stream. Layer 1, head 0 looks for places whose token before equals the current token, and copies what
stands there; the output head reads the copy. So the model repeats strings of its context before it has
learnt anything, and training starts where it would otherwise be after some millions of tokens. All of it
remains trainable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from perilune.model.config import TextConfig
from perilune.model.rotary import frequencies
from perilune.model.text import LatentAttention, TextDecoder

CONSTANT = 2.0
"""Value of dimension 0 in every embedding; the others have standard deviation SPREAD."""
SPREAD = 0.5
TURNS = 8
"""Fastest rotary pairs that find the previous token."""
SHARPNESS = 8.7
MATCH, MATCH_KEY = 3.0, 1.5
WRITTEN, COPIED = 0.5, 2.0
HEAD = 0.36


@torch.no_grad()
def initialise(decoder: TextDecoder, seed: int = 0) -> None:
    """Overwrite all weights."""
    generator = torch.Generator().manual_seed(seed)
    config = decoder.config
    for name, parameter in decoder.named_parameters():
        if parameter.dim() < 2:
            continue
        small = 0.3 if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")) else 1.0
        parameter.normal_(std=small * 0.6 * parameter.shape[-1] ** -0.5, generator=generator)
    embedding = torch.randn(config.vocab_size, config.hidden_size, generator=generator) * SPREAD
    embedding[:, 0] = CONSTANT
    decoder.model.embed_tokens.weight.copy_(embedding)
    first, second = (_attention(decoder.model.layers[index]) for index in (0, 1))
    # What an RMSNorm makes of the constant dimension.
    rms = math.sqrt((SPREAD**2 * (config.hidden_size - 1) + CONSTANT**2) / config.hidden_size)
    reading = _orthogonal(config.kv_lora_rank, config.hidden_size - 1, generator)
    written = _orthogonal(config.hidden_size, config.v_head_dim, generator)
    written[0] = 0
    _wire_previous(first, config, CONSTANT / rms, reading, written)
    _wire_match(second, decoder, embedding, reading, written, generator)


def _attention(layer: nn.Module) -> LatentAttention:
    attention = layer.self_attn
    assert isinstance(attention, LatentAttention)
    return attention


def _wire_previous(
    attention: LatentAttention, config: TextConfig, constant: float, reading: Tensor, written: Tensor
) -> None:
    """Head 0 of layer 0: the token before, projected by `reading`, written by `written`."""
    lora, nope, rank = config.kv_lora_rank, config.qk_nope_head_dim, config.q_lora_rank or 0
    q_a, q_b = attention.q_a_proj.weight, attention.q_b_proj.weight
    q_a[:, 0] = 0
    q_a[0] = 0
    q_a[0, 0] = 4 / constant
    latent = 4 / math.sqrt(((rank - 1) * 0.36 + 16) / rank)
    q_b[: config.qk_head_dim] = 0
    kv_a = attention.kv_a_proj_with_mqa.weight
    kv_a[lora:] *= 0.1
    for pair, angle in enumerate(frequencies(config)[:TURNS].tolist()):
        q_b[nope + 2 * pair, 0] = SHARPNESS / latent
        kv_a[lora + 2 * pair] = 0
        kv_a[lora + 2 * pair + 1] = 0
        kv_a[lora + 2 * pair, 0] = SHARPNESS * math.cos(angle) / constant
        kv_a[lora + 2 * pair + 1, 0] = SHARPNESS * math.sin(angle) / constant
    kv_a[:lora, 0] = 0
    kv_a[:lora, 1:] = reading
    by_head = attention.kv_b_proj.weight.view(config.num_attention_heads, -1, lora)
    by_head[0] = 0
    by_head[0, nope:] = torch.eye(config.v_head_dim, lora)
    attention.o_proj.weight[:, : config.v_head_dim] = written * WRITTEN


def _wire_match(
    attention: LatentAttention,
    decoder: TextDecoder,
    embedding: Tensor,
    reading: Tensor,
    written: Tensor,
    generator: torch.Generator,
) -> None:
    """Head 0 of layer 1: where the token before equals this one, copy; and the head that reads copies."""
    config = decoder.config
    lora, nope, hidden = config.kv_lora_rank, config.qk_nope_head_dim, config.hidden_size
    half = lora // 2
    mixing = _orthogonal(nope, lora, generator)
    attention.q_a_proj.weight[:lora, 0] = 0
    attention.q_a_proj.weight[:lora, 1:] = reading * 2
    attention.q_b_proj.weight[: config.qk_head_dim] = 0
    attention.q_b_proj.weight[:nope, :lora] = mixing * MATCH * 2 / 1.2
    values = torch.zeros(half, hidden)
    values[:, 1:] = _orthogonal(half, hidden - 1, generator)
    kv_a = attention.kv_a_proj_with_mqa.weight
    kv_a[:half] = (mixing @ written.T)[:half] * MATCH_KEY
    kv_a[half:lora] = values
    by_head = attention.kv_b_proj.weight.view(config.num_attention_heads, -1, lora)
    by_head[0] = 0
    by_head[0, :nope, :half] = torch.eye(nope, half) * MATCH
    by_head[0, nope : nope + half, half:] = torch.eye(half)
    copied = _orthogonal(hidden, half, generator)
    copied[0] = 0
    attention.o_proj.weight[:, : config.v_head_dim] = 0
    attention.o_proj.weight[:, :half] = copied * COPIED
    decoder.lm_head.weight.copy_((embedding @ values.T) @ copied.T * HEAD)


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    square = torch.randn(max(rows, columns), min(rows, columns), generator=generator)
    q: Tensor = torch.linalg.qr(square)[0]
    return q if rows >= columns else q.T
