"""Runs the model on the parts of one step: lists of tokens and blocks in, one row of logits each out."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch
from torch import Tensor

from perilune.engine.scheduler import Part, Step
from perilune.engine.sequence import MEDIA
from perilune.engine.sight import Sight
from perilune.model.attention import AbsorbedAttention, LatentCache, PagedBatch
from perilune.model.text import TextDecoder


class Runner:
    """Holds the model and its latent cache; block 0 of the cache is the padding block."""

    def __init__(self, model: TextDecoder, blocks: int, block_size: int, sight: Sight) -> None:
        weight = model.lm_head.weight
        self._model = model
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
        positions = np.concatenate([np.arange(part.start, part.end) for part in step.parts])
        tokens = [token for part in step.parts for token in part.sequence.tokens[part.start : part.end]]
        placed = self._sight.placed(step.parts)
        if placed is not None:
            tokens = [0 if token >= MEDIA else token for token in tokens]
        batch = self._batch(step.parts, positions)
        hidden = self._model(
            torch.tensor(tokens, device=self._device),
            torch.from_numpy(positions).to(self._device),
            AbsorbedAttention(self._cache, batch),
            placed,
        )
        last = [end - 1 for end, part in zip(batch.query_start[1:], step.parts, strict=True) if part.samples]
        return self._model.logits(hidden[last])

    def _batch(self, parts: SequenceOf[Part], positions: np.ndarray) -> PagedBatch:
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
            torch.from_numpy(slots).to(self._device),
        )
