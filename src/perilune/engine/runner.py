"""Runs the model on the parts of one step: lists of tokens and blocks in, one row of logits each out."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch
from torch import Tensor

from perilune.engine.scheduler import Part, Step
from perilune.engine.sequence import MEDIA
from perilune.engine.sight import Sight
from perilune.model.attention import AbsorbedAttention, FixedTileAttention, LatentCache, PagedBatch
from perilune.model.kernels.fixed_tiles import ROWS
from perilune.model.text import TextDecoder


class Runner:
    """Holds the model and its latent cache; block 0 of the cache is the padding block."""

    def __init__(
        self, model: TextDecoder, blocks: int, block_size: int, sight: Sight, *, deterministic: bool = False
    ) -> None:
        weight = model.lm_head.weight
        self._model = model
        self._deterministic = deterministic
        if deterministic:
            model.compute_in_fixed_tiles()
        self._sight = sight
        self._device = weight.device
        self._cache = LatentCache.allocate(
            model.config, blocks + 1, block_size, dtype=weight.dtype, device=weight.device
        )

    @torch.inference_mode()
    def run(self, step: Step) -> Tensor:
        """Writes the latents of all parts; logits [S, vocab] of the parts that sample, in their order."""
        if step.fresh_blocks:
            self._cache.data[:, step.fresh_blocks] = 0
        if not self._deterministic:
            hidden, last = self._forward(step.parts, rows=0)
            return self._model.logits(hidden[last])
        # Tile after tile: a row's past, be it in this step, lies in an earlier tile or its own.
        logits = []
        for parts in tiles(step.parts, ROWS):
            hidden, last = self._forward(parts, rows=ROWS)
            if last:
                logits.append(self._model.logits(hidden)[last])
        return torch.cat(logits) if logits else hidden.new_empty(0, len(self._model.lm_head.weight))

    def _forward(self, parts: SequenceOf[Part], rows: int) -> tuple[Tensor, list[int]]:
        """Hidden states of the parts' tokens, filled up to `rows`, and which of them sample."""
        positions = np.concatenate([np.arange(part.start, part.end) for part in parts])
        tokens = [token for part in parts for token in part.sequence.tokens[part.start : part.end]]
        placed = self._sight.placed(parts)
        if placed is not None:
            tokens = [0 if token >= MEDIA else token for token in tokens]
        filling = max(0, rows - len(tokens))
        batch = self._batch(parts, positions, filling)
        attend = FixedTileAttention if self._deterministic else AbsorbedAttention
        hidden = self._model(
            torch.tensor([*tokens, *[0] * filling], device=self._device),
            torch.from_numpy(np.pad(positions, (0, filling))).to(self._device),
            attend(self._cache, batch),
            placed,
        )
        ends = batch.query_start[1:]
        return hidden, [end - 1 for end, part in zip(ends, parts, strict=True) if part.samples]

    def _batch(self, parts: SequenceOf[Part], positions: np.ndarray, filling: int) -> PagedBatch:
        """Rows that only fill up write into the padding block."""
        size = self._cache.block_size
        most = max(len(part.sequence.blocks) for part in parts)
        tables = np.zeros((len(parts), most), dtype=np.int64)
        for table, part in zip(tables, parts, strict=True):
            table[: len(part.sequence.blocks)] = part.sequence.blocks
        counts = np.array([part.count for part in parts])
        rows = np.repeat(np.arange(len(parts)), counts)
        slots = tables[rows, positions // size] * size + positions % size
        return PagedBatch(
            [0, *np.cumsum(counts).tolist()],
            [part.end for part in parts],
            torch.from_numpy(tables).to(self._device),
            torch.from_numpy(np.pad(slots, (0, filling))).to(self._device),
        )


def tiles(parts: SequenceOf[Part], rows: int) -> list[list[Part]]:
    """The parts' tokens in their order, cut after every `rows` of them."""
    cut: list[list[Part]] = []
    room = 0
    for part in parts:
        start = part.start
        while start < part.end:
            if not room:
                cut.append([])
                room = rows
            count = min(room, part.end - start)
            cut[-1].append(Part(part.sequence, start, count))
            start += count
            room -= count
    return cut
