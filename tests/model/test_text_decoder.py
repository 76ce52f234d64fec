"""The decoder against a naive definition, and its fast twins against their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from perilune.model import attention
from perilune.model.attention import AbsorbedAttention, CausalAttention, LatentCache, PagedBatch
from perilune.model.config import TextConfig, Yarn
from perilune.model.kernels import latent_attention
from perilune.model.kernels.causal_attention import causal_attention, causal_attention_definition
from perilune.model.kernels.experts import routed_experts, routed_experts_definition
from perilune.model.kernels.rms_norm import rms_norm, rms_norm_definition
from perilune.model.rotary import Rotary, frequencies, rotate
from perilune.model.text import TextDecoder
from perilune.model.tiny import TINY, random_decoder

SHAPES = {
    "tiny": TINY,
    "one_query_matrix": replace(TINY, q_lora_rank=None),
    "no_yarn": replace(TINY, yarn=None),
    "beta_fast_1": replace(TINY, yarn=Yarn(64.0, 4096, beta_fast=1.0)),
    "uneven_heads": replace(TINY, qk_nope_head_dim=24, v_head_dim=40, kv_lora_rank=20, num_attention_heads=3),
    "two_shared_dense_first_two": replace(TINY, n_shared_experts=2, first_k_dense_replace=2),
    "weights_not_normalised": replace(TINY, norm_topk_prob=False, num_experts_per_tok=3),
}


def naive_logits(decoder: TextDecoder, ids: list[int]) -> Tensor:
    """One sequence, F64, one position and one head at a time, written from the formulas alone."""
    c = decoder.config
    w = {name: tensor.double() for name, tensor in decoder.state_dict().items()}
    turning = frequencies(c).tolist()

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return x / torch.sqrt((x * x).mean() + eps) * w[f"{name}.weight"]

    def turn(x: Tensor, position: int) -> Tensor:
        out = x.clone()
        for pair, speed in enumerate(turning):
            cos, sin = math.cos(position * speed), math.sin(position * speed)
            a, b = x[2 * pair], x[2 * pair + 1]
            out[2 * pair], out[2 * pair + 1] = a * cos - b * sin, a * sin + b * cos
        return out

    def attention(rows: list[Tensor], p: str) -> list[Tensor]:
        keys, values, outs = [], [], []
        for t, x in enumerate(rows):
            if c.q_lora_rank is None:
                q = w[f"{p}q_proj.weight"] @ x
            else:
                q = w[f"{p}q_b_proj.weight"] @ norm(
                    w[f"{p}q_a_proj.weight"] @ x, f"{p}q_a_layernorm", c.latent_eps
                )
            kv = w[f"{p}kv_a_proj_with_mqa.weight"] @ x
            latent = norm(kv[: c.kv_lora_rank], f"{p}kv_a_layernorm", c.latent_eps)
            k_rope = turn(kv[c.kv_lora_rank :], t)
            expanded = (w[f"{p}kv_b_proj.weight"] @ latent).view(c.num_attention_heads, -1)
            keys.append([torch.cat([head[: c.qk_nope_head_dim], k_rope]) for head in expanded])
            values.append([head[c.qk_nope_head_dim :] for head in expanded])
            heads = []
            for h, q_head in enumerate(q.view(c.num_attention_heads, -1)):
                nope, rope = q_head[: c.qk_nope_head_dim], q_head[c.qk_nope_head_dim :]
                query = torch.cat([nope, turn(rope, t)])
                scores = torch.stack([query @ key[h] for key in keys]) * c.softmax_scale
                heads.append(sum(s * v[h] for s, v in zip(scores.softmax(0), values, strict=True)))
            outs.append(w[f"{p}o_proj.weight"] @ torch.cat(heads))  # type: ignore[arg-type]
        return outs

    def mlp(x: Tensor, p: str) -> Tensor:
        gate, up = w[f"{p}gate_proj.weight"] @ x, w[f"{p}up_proj.weight"] @ x
        return w[f"{p}down_proj.weight"] @ (gate / (1 + torch.exp(-gate)) * up)

    def moe(x: Tensor, p: str) -> Tensor:
        scores = 1 / (1 + torch.exp(-(w[f"{p}gate.weight"] @ x)))
        biased = scores + w[f"{p}gate.e_score_correction_bias"]
        chosen = sorted(range(c.n_routed_experts), key=lambda e: -biased[e].item())[: c.num_experts_per_tok]
        total = sum(scores[e] for e in chosen) + 1e-20 if c.norm_topk_prob else 1.0
        out = mlp(x, f"{p}shared_experts.")
        for e in chosen:
            gate, up = (w[f"{p}experts.gate_up_proj"][e] @ x).chunk(2)
            answer = w[f"{p}experts.down_proj"][e] @ (gate / (1 + torch.exp(-gate)) * up)
            out = out + scores[e] / total * c.routed_scaling_factor * answer
        return out

    rows = [w["model.embed_tokens.weight"][i] for i in ids]
    for layer in range(c.num_hidden_layers):
        p = f"model.layers.{layer}."
        seen = attention([norm(x, f"{p}input_layernorm", c.rms_norm_eps) for x in rows], f"{p}self_attn.")
        rows = [x + y for x, y in zip(rows, seen, strict=True)]
        feed = moe if c.is_moe(layer) else mlp
        rows = [x + feed(norm(x, f"{p}post_attention_layernorm", c.rms_norm_eps), f"{p}mlp.") for x in rows]
    return torch.stack([w["lm_head.weight"] @ norm(x, "model.norm", c.rms_norm_eps) for x in rows])


def plain_logits(decoder: TextDecoder, ids: Tensor) -> Tensor:
    """ids [B, T] -> [B, T, vocab]"""
    batch, length = ids.shape
    positions = torch.arange(length).repeat(batch)
    with torch.no_grad():
        hidden = decoder(ids.flatten(), positions, CausalAttention(batch, length))
        return decoder.logits(hidden).view(batch, length, -1)


def some_ids(batch: int, length: int, config: TextConfig = TINY) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, config.vocab_size, (batch, length), generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_the_naive_definition(shape: str) -> None:
    decoder = random_decoder(SHAPES[shape], seed=3)
    ids = some_ids(2, 9)
    got = plain_logits(decoder, ids)
    for row, want_ids in zip(got, ids.tolist(), strict=True):
        want = naive_logits(decoder, want_ids)
        assert want.abs().max() > 0.5
        torch.testing.assert_close(row.double(), want, rtol=0, atol=2e-5)


def test_padding_at_the_end_changes_nothing_before_it() -> None:
    decoder = random_decoder()
    ids = some_ids(1, 20)
    padded = torch.cat([ids, torch.zeros(1, 44, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(
        plain_logits(decoder, padded)[:, :20], plain_logits(decoder, ids), rtol=0, atol=1e-5
    )


class Paged:
    """Feeds sequences to the absorbed form in any pieces, from scattered cache blocks."""

    def __init__(self, decoder: TextDecoder, ids: Tensor, block_size: int) -> None:
        self.decoder, self.ids, self.block_size = decoder, ids, block_size
        per_sequence = -(-ids.shape[1] // block_size)
        blocks = len(ids) * per_sequence + 1
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(0)).tolist()
        self.tables = [order[s * per_sequence : (s + 1) * per_sequence] for s in range(len(ids))]
        self.cache = LatentCache.allocate(decoder.config, blocks, block_size)
        # What another sequence left behind must not be seen.
        self.cache.data.fill_(1e4)
        self.done = [0] * len(ids)

    def step(self, pieces: dict[int, int]) -> dict[int, Tensor]:
        """pieces: sequence -> how many of its next tokens; returns their logits."""
        spans = {s: (self.done[s], self.done[s] + count) for s, count in pieces.items()}
        batch = PagedBatch.build(
            list(pieces.values()),
            [last for _, last in spans.values()],
            [self.tables[s][: -(-last // self.block_size)] for s, (_, last) in spans.items()],
            self.block_size,
        )
        tokens = torch.cat([self.ids[s, first:last] for s, (first, last) in spans.items()])
        positions = torch.cat([torch.arange(first, last) for first, last in spans.values()])
        with torch.no_grad():
            hidden = self.decoder(tokens, positions, AbsorbedAttention(self.cache, batch))
            logits = self.decoder.logits(hidden)
        for s, (_, last) in spans.items():
            self.done[s] = last
        return dict(zip(pieces, logits.split(list(pieces.values())), strict=True))


@pytest.mark.parametrize("shape", ["tiny", "uneven_heads", "one_query_matrix"])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_absorbed_equals_plain_for_mixed_chunks_and_decodes(shape: str, block_size: int) -> None:
    decoder = random_decoder(SHAPES[shape], seed=1)
    ids = some_ids(3, 24)
    want = plain_logits(decoder, ids)
    paged = Paged(decoder, ids, block_size)
    schedule = [{0: 7}, {1: 1, 0: 1}, {0: 1, 1: 12, 2: 5}, {2: 1, 0: 1, 1: 1}, {2: 18}, {0: 14, 1: 10}]
    for pieces in schedule:
        start = dict.fromkeys(pieces, 0) | {s: paged.done[s] for s in pieces}
        for s, logits in paged.step(pieces).items():
            torch.testing.assert_close(logits, want[s, start[s] : start[s] + pieces[s]], rtol=0, atol=1e-5)
    assert paged.done == [24, 24, 24]


@pytest.mark.parametrize("most", [1, 30, 50])
def test_one_long_sequence_does_not_pad_all_others(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    decoder = random_decoder(TINY, seed=1)
    ids = some_ids(4, 24)
    want = plain_logits(decoder, ids)
    monkeypatch.setattr(attention, "GATHERED_AT_ONCE", most * TINY.latent_width)
    gathered = []
    whole = attention.attend_decode

    def noting(queries: Tensor, pages: Tensor, tables: Tensor, *rest: Any) -> Tensor:
        gathered.append((len(tables), tables.numel() * pages.shape[1]))
        return whole(queries, pages, tables, *rest)

    monkeypatch.setattr(attention, "attend_decode", noting)
    paged = Paged(decoder, ids, block_size=1)
    paged.step({0: 22, 1: 2, 2: 8, 3: 3})
    for s, logits in paged.step({0: 1, 1: 1, 2: 1, 3: 1}).items():
        torch.testing.assert_close(logits[0], want[s, paged.done[s] - 1], rtol=0, atol=1e-5)
    assert sum(count for count, _ in gathered) == 4 * TINY.num_hidden_layers
    assert all(tokens <= most for count, tokens in gathered if count > 1)


@pytest.mark.parametrize("rows_at_once", [1, 7, 64])
def test_chunks_in_parts_equal_their_definition(monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    pages = normal(10, 8, 24)
    table = torch.tensor([4, 1, 9, 0, 2, 3, 7, 5])
    queries = normal(30, 2, 24)
    monkeypatch.setattr(latent_attention, "MAX_ROWS_AT_ONCE", rows_at_once)
    got = latent_attention.attend_chunk(queries, pages, table, 61, 0.2, 16)
    want = latent_attention.attend_rows(queries, pages, table, 61, 0.2, 16)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_scores_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_attention, "SCORES_AT_ONCE", 2 * 61 * 3)
    sizes = []
    whole = latent_attention.attend_rows

    def noting(queries: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(queries))
        return whole(queries, *rest)

    monkeypatch.setattr(latent_attention, "attend_rows", noting)
    table = torch.arange(8)
    latent_attention.attend_chunk(normal(30, 2, 24), normal(10, 8, 24), table, 61, 0.2, 16)
    assert sizes == [3] * 10


def test_far_positions_see_distances_only() -> None:
    """A shift by the whole context moves logits of about 5 by no more than the official code's F32 angles
    do, which at 262,000 are rounded to 1/64 radian; test_model_oracle.py holds those bits."""
    decoder = random_decoder(replace(TINY, yarn=Yarn(64.0, 4096)))
    ids = some_ids(1, 30)[0]
    with torch.no_grad():
        near = decoder(ids, torch.arange(30), CausalAttention(1, 30))
        far = decoder(ids, torch.arange(30) + 262_000, CausalAttention(1, 30))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-2)


YARN_CHECKS = {
    0: 1.0,
    1: 0.7131111,
    8: 6.687403e-02,
    10: 2.842796e-02,
    12: 1.161916e-02,
    14: 4.465849e-03,
    16: 1.537297e-03,
    18: 4.086461e-04,
    19: 1.583750e-04,
    20: 1.807023e-05,
    31: 4.382206e-07,
}


def test_yarn_frequencies_of_k26() -> None:
    config = replace(TINY, qk_rope_head_dim=64, qk_nope_head_dim=128, yarn=Yarn(64.0, 4096))
    found = frequencies(config).tolist()
    assert len(found) == 32
    for pair, value in YARN_CHECKS.items():
        assert found[pair] == pytest.approx(value, rel=1e-6)
    # Pairs up to 8 are kept, from 20 on stretched in full.
    base = [50000.0 ** (-pair / 32) for pair in range(32)]
    assert found[:9] == pytest.approx(base[:9])
    assert found[20:] == pytest.approx([speed / 64 for speed in base[20:]])


def test_rotation_turns_neighbouring_pairs() -> None:
    rotary = Rotary(replace(TINY, yarn=None))
    x = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    turned = rotate(x, rotary.turns(torch.tensor([3])))
    want = torch.tensor([[math.cos(3), math.sin(3), 0, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(turned, want)
    assert rotate(x.bfloat16(), rotary.turns(torch.tensor([3]))).dtype == torch.bfloat16


def test_router_bias_selects_and_does_not_weigh() -> None:
    router = random_decoder().routers[0]
    x = torch.randn(50, TINY.hidden_size, generator=torch.Generator().manual_seed(0))
    router.e_score_correction_bias.zero_()
    router.e_score_correction_bias[5] = 10.0
    chosen, weights = router(x)
    assert (chosen == 5).any(dim=1).all()
    scores = torch.sigmoid(x @ router.weight.T).gather(1, chosen)
    torch.testing.assert_close(weights, 2.827 * scores / scores.sum(1, keepdim=True))
    assert router.loads[5] == 50
    assert router.loads.sum() == 100


def assert_same_with_gradients(
    fast: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor], atol: float
) -> None:
    """Values and the gradient of every input agree."""
    results = []
    for function in (fast, plain):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out = function(*leaves)
        direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
        grads = torch.autograd.grad((out * direction).sum(), leaves)
        results.append([out, *grads])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=atol)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("length", [1, 5, 64, 65, 200])
def test_blocked_causal_attention_equals_its_definition(length: int) -> None:
    q, k, v = normal(2, 3, length, 24), normal(2, 3, length + 0, 24) * 0.7, normal(2, 3, length, 40)
    assert_same_with_gradients(
        lambda *x: causal_attention(*x, 0.3), lambda *x: causal_attention_definition(*x, 0.3), [q, k, v], 2e-5
    )


def test_norm_equals_its_definition() -> None:
    inputs = [normal(7, 48), normal(48)]
    assert_same_with_gradients(
        lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: rms_norm_definition(x, w, 1e-5), inputs, 1e-5
    )
    torch.testing.assert_close(
        rms_norm_definition(inputs[0], inputs[1], 1e-5), F.rms_norm(inputs[0], (48,), inputs[1], 1e-5)
    )


@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize("unused", [0, 3])
def test_grouped_experts_equal_their_definition(tokens: int, unused: int) -> None:
    experts, chosen_each = 6, 2
    generator = torch.Generator().manual_seed(tokens)
    chosen = torch.rand(tokens, experts - unused, generator=generator).topk(chosen_each).indices
    inputs = [
        normal(tokens, 16),
        torch.rand(tokens, chosen_each, generator=generator),
        normal(experts, 2 * 12, 16),
        normal(experts, 16, 12),
    ]
    assert_same_with_gradients(
        lambda x, w, gate_up, down: routed_experts(x, chosen, w, gate_up, down),
        lambda x, w, gate_up, down: routed_experts_definition(x, chosen, w, gate_up, down),
        inputs,
        1e-4,
    )
    with torch.no_grad():
        x, weights, gate_up, down = inputs
        torch.testing.assert_close(
            routed_experts(x, chosen, weights, gate_up, down),
            routed_experts_definition(x, chosen, weights, gate_up, down),
            rtol=1e-4,
            atol=1e-4,
        )


def test_every_parameter_learns_and_the_loss_falls() -> None:
    decoder = random_decoder(seed=2).requires_grad_(True).train()
    decoder.train_for_int4(32)
    ids = some_ids(4, 33)
    positions = torch.arange(32).repeat(4)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        hidden = decoder(ids[:, :-1].flatten(), positions, CausalAttention(4, 32))
        loss = F.cross_entropy(decoder.logits(hidden), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_bf16_runs_and_stays_near_f32() -> None:
    decoder = random_decoder(replace(TINY, initializer_range=0.05))
    ids = some_ids(1, 12)
    want = plain_logits(decoder, ids)
    got = plain_logits(decoder.to(torch.bfloat16), ids)
    assert got.dtype == torch.float32
    assert torch.isfinite(got).all()
    assert (got - want).abs().mean() < 0.2 * want.abs().mean()
