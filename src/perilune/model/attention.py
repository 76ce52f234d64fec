"""Multi-head latent attention: the strategies that a decoder layer can be given.

Every token leaves one latent (kv_lora values, normalised) and one rotary key (rope values, shared by
all heads). The *plain* form expands latents into keys and values per head: the definition, and what
training uses. The *absorbed* form moves the expansion to the query side, so that the cache holds the
latents only and attention is multi-query with one wide key. Source: DeepSeek-V2 (arXiv 2405.04434).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from perilune.model.config import TextConfig
from perilune.model.kernels.causal_attention import causal_attention
from perilune.model.kernels.fixed_tiles import attend_fixed
from perilune.model.kernels.latent_attention import attend_chunk, attend_decode

GATHERED_AT_ONCE = 2**26
"""Values that decoding copies at once, 256 MiB in F32: one long sequence must not pad all to its length."""


@dataclass(frozen=True)
class LayerQuery:
    """What one decoder layer asks of attention, for a flat batch of n tokens and H heads."""

    layer: int
    q_nope: Tensor
    """[n, H, nope]"""
    q_rope: Tensor
    """[n, H, rope], already rotated."""
    latent: Tensor
    """[n, kv_lora], already normalised."""
    k_rope: Tensor
    """[n, rope], already rotated."""
    kv_b: Tensor
    """[H * (nope + v), kv_lora]; per head first the rows of the key, then those of the value."""
    scale: float
    """Multiplies query-key products."""


class Attention(Protocol):
    """How the tokens of one forward see each other and the past."""

    def __call__(self, query: LayerQuery) -> Tensor:
        """Head outputs [n, H, v]."""
        ...


@dataclass(frozen=True)
class CausalAttention:
    """Plain form over `batch` sequences of `length` tokens, flattened row after row; differentiable.

    Shorter sequences are padded at the end: no real token sees what comes after it.
    """

    batch: int
    length: int

    def __call__(self, query: LayerQuery) -> Tensor:
        tokens, heads, nope = query.q_nope.shape
        expanded = self._by_head(F.linear(query.latent, query.kv_b).view(tokens, heads, -1))
        k_rope = self._by_head(query.k_rope[:, None]).expand(-1, heads, -1, -1)
        q = torch.cat([self._by_head(query.q_nope), self._by_head(query.q_rope)], dim=-1)
        k = torch.cat([expanded[..., :nope], k_rope], dim=-1)
        out = causal_attention(q, k, expanded[..., nope:], query.scale)
        return out.transpose(1, 2).reshape(tokens, heads, -1)

    def _by_head(self, x: Tensor) -> Tensor:
        """[batch * length, H, d] -> [batch, H, length, d], without copying."""
        return x.view(self.batch, self.length, *x.shape[1:]).transpose(1, 2)


@dataclass(frozen=True)
class LatentCache:
    """Latents of the past, in blocks: `data` is [layers, blocks, block_size, kv_lora + rope]."""

    data: Tensor

    @classmethod
    def allocate(
        cls,
        config: TextConfig,
        blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> LatentCache:
        """A zeroed cache of `blocks * block_size` tokens."""
        shape = (config.num_hidden_layers, blocks, block_size, config.latent_width)
        return cls(torch.zeros(shape, dtype=dtype, device=device))

    @property
    def block_size(self) -> int:
        return int(self.data.shape[2])


@dataclass(frozen=True)
class PagedBatch:
    """S sequences of one engine step, flattened: rows query_start[s] up to query_start[s + 1] are
    the newest tokens of sequence s, in order. One row is a decode, several are a prefill chunk.
    """

    query_start: Sequence[int]
    """S + 1 row offsets; the first is 0, the last is n."""
    context_lens: Sequence[int]
    """S lengths in tokens, cached ones and this step's together."""
    block_tables: Tensor
    """[S, most blocks] int64: the cache blocks of each sequence in order; the rest of a row is any block."""
    slot_mapping: Tensor
    """[n] int64: block * block_size + offset, where each row's latent is written."""

    @classmethod
    def build(
        cls,
        query_lens: Sequence[int],
        context_lens: Sequence[int],
        tables: Sequence[Sequence[int]],
        block_size: int,
        device: torch.device | str = "cpu",
    ) -> PagedBatch:
        """From plain lists: per sequence its new tokens, its length with them, and its blocks."""
        starts, slots = [0], []
        for count, length, table in zip(query_lens, context_lens, tables, strict=True):
            starts.append(starts[-1] + count)
            places = range(length - count, length)
            slots += [table[place // block_size] * block_size + place % block_size for place in places]
        most = max((len(table) for table in tables), default=0)
        padded = [[*table, *[0] * (most - len(table))] for table in tables]
        return cls(
            starts,
            tuple(context_lens),
            torch.tensor(padded, dtype=torch.int64, device=device).view(len(tables), most),
            torch.tensor(slots, dtype=torch.int64, device=device),
        )


class AbsorbedAttention:
    """Absorbed form over a paged latent cache; writes the new rows' latents, then attends.

    Not differentiable: the cache is overwritten in place.
    """

    def __init__(self, cache: LatentCache, batch: PagedBatch) -> None:
        self._cache = cache
        self._batch = batch
        starts, lengths = batch.query_start, batch.context_lens
        counts = [last - first for first, last in itertools.pairwise(starts)]
        single = [s for s, count in enumerate(counts) if count == 1]
        self._chunks = [s for s, count in enumerate(counts) if count > 1]
        most = max(1, GATHERED_AT_ONCE // cache.data.shape[-1])
        self._decodes = [_Decodes.build(cache, batch, part) for part in _padded_parts(single, lengths, most)]

    @torch.no_grad()
    def __call__(self, query: LayerQuery) -> Tensor:
        heads, nope, kv_lora = query.q_nope.shape[1], query.q_nope.shape[2], query.latent.shape[1]
        by_head = query.kv_b.view(heads, -1, kv_lora)
        w_key, w_value = by_head[:, :nope], by_head[:, nope:]
        pages = self._cache.data[query.layer]
        row = torch.cat([query.latent, query.k_rope], dim=-1).to(pages.dtype)
        pages.view(-1, pages.shape[-1]).index_copy_(0, self._batch.slot_mapping, row)
        # One query as wide as a cached row: q_nope as the latent sees it, then the rotary part.
        absorbed = torch.bmm(query.q_nope.transpose(0, 1), w_key).transpose(0, 1)
        wide = torch.cat([absorbed, query.q_rope], dim=-1)
        mixed = self._attend(wide, pages, query.scale, kv_lora)
        return torch.bmm(mixed.transpose(0, 1), w_value.transpose(1, 2)).transpose(0, 1)

    def _attend(self, wide: Tensor, pages: Tensor, scale: float, kv_lora: int) -> Tensor:
        """wide [n, H, kv_lora + rope] -> attention-weighted latents [n, H, kv_lora]."""
        batch = self._batch
        if not self._chunks and len(self._decodes) == 1:
            return self._decodes[0].attend(wide, pages, scale)[..., :kv_lora]
        mixed = wide.new_empty(*wide.shape[:2], kv_lora)
        for decodes in self._decodes:
            mixed[decodes.rows] = decodes.attend(wide[decodes.rows], pages, scale)[..., :kv_lora]
        for s in self._chunks:
            first, last = batch.query_start[s], batch.query_start[s + 1]
            mixed[first:last] = attend_chunk(
                wide[first:last], pages, batch.block_tables[s], batch.context_lens[s], scale, kv_lora
            )
        return mixed


class FixedTileAttention(AbsorbedAttention):
    """The same, so that a row comes out with the same bits whatever else is in the batch (see
    model/kernels/fixed_tiles.py). The batch has ROWS rows; those after the last sequence mean nothing."""

    def __init__(self, cache: LatentCache, batch: PagedBatch) -> None:
        self._cache = cache
        self._batch = batch

    def _attend(self, wide: Tensor, pages: Tensor, scale: float, kv_lora: int) -> Tensor:
        batch = self._batch
        mixed = wide.new_zeros(*wide.shape[:2], kv_lora)
        for s, (first, last) in enumerate(itertools.pairwise(batch.query_start)):
            mixed[first:last] = attend_fixed(
                wide[first:last], pages, batch.block_tables[s], batch.context_lens[s], scale, kv_lora
            )
        return mixed


@dataclass(frozen=True)
class _Decodes:
    """Sequences with one new row each that attend together, padded to the longest of them."""

    rows: Tensor
    """[S] int64"""
    tables: Tensor
    """[S, blocks]"""
    bias: Tensor
    """[S, 1, blocks * block_size]: 0 where a token is seen, -inf where not."""

    @classmethod
    def build(cls, cache: LatentCache, batch: PagedBatch, sequences: Sequence[int]) -> _Decodes:
        device, lengths = batch.block_tables.device, [batch.context_lens[s] for s in sequences]
        blocks = -(-max(lengths) // cache.block_size)
        rows = torch.tensor([batch.query_start[s] for s in sequences], dtype=torch.int64, device=device)
        seen = torch.tensor(lengths, dtype=torch.int64, device=device)
        unseen = torch.arange(blocks * cache.block_size, device=device) >= seen[:, None]
        bias = torch.zeros(unseen.shape, dtype=cache.data.dtype, device=device)
        bias = bias.masked_fill_(unseen, float("-inf"))[:, None]
        return cls(rows, batch.block_tables[list(sequences), :blocks], bias)

    def attend(self, wide: Tensor, pages: Tensor, scale: float) -> Tensor:
        return attend_decode(wide, pages, self.tables, self.bias.to(wide.dtype), scale)


def _padded_parts(sequences: list[int], lengths: Sequence[int], most: int) -> list[list[int]]:
    """All sequences in one part where it fits; else by length, so that none but a part of one sequence
    comes to more than `most` tokens when padded to its longest."""
    if not sequences or len(sequences) * max(lengths[s] for s in sequences) <= most:
        return [sequences] if sequences else []
    parts: list[list[int]] = []
    for s in sorted(sequences, key=lambda s: -lengths[s]):
        if parts and (len(parts[-1]) + 1) * lengths[parts[-1][0]] <= most:
            parts[-1].append(s)
        else:
            parts.append([s])
    return parts
