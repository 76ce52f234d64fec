"""The mix of traces, and batches of few shapes from it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nano import orchestrate_traces, rename_traces
from nano.names import Pool
from nano.traces import Encoder, Trace

TOKENS = 2048
"""Of one batch on one rank, padding included; about so many where the length does not divide it."""
STEP = 64
"""Lengths are padded to a multiple of this."""
LONGEST = 1536
"""Tokens of a trained context; the profiles restart an agent before."""
POOL = 12
"""Batches that are made at once, so that similar lengths find each other."""
BESIDE = (0.04, 0.25)
"""Share of context tokens that are learnt a little, and how much."""

MAKERS: Mapping[str, Callable[[Pool, random.Random], list[Trace]]] = {
    "rename": rename_traces.traces,
    "rename-one": lambda pool, rng: rename_traces.traces(pool, rng, most_hits=1),
    "search": lambda pool, rng: rename_traces.traces(pool, rng, most_hits=1, most_steps=1),
    "opening": orchestrate_traces.opening,
    "round": orchestrate_traces.round_of,
    "ending": orchestrate_traces.ending,
}


@dataclass(frozen=True)
class Stage:
    """Until this share of the training: which traces, and how long they may be."""

    until: float
    longest: int
    bare: float
    """Share of traces without their tool declarations: more choices to learn per token."""
    mix: Mapping[str, float]


DENSE = {"rename": 0.30, "rename-one": 0.34, "opening": 0.20, "round": 0.10, "ending": 0.06}
LAST = {"rename": 0.30, "rename-one": 0.20, "search": 0.22, "opening": 0.10, "round": 0.12, "ending": 0.06}

STAGES = (
    Stage(0.08, 512, 0.8, {"rename-one": 0.5, "rename": 0.2, "opening": 0.3}),
    Stage(0.18, 832, 0.8, {"rename-one": 0.2, "rename": 0.4, "opening": 0.25, "ending": 0.15}),
    Stage(0.88, LONGEST, 0.8, DENSE),
    Stage(1.01, LONGEST, 0.5, LAST),
)


@dataclass(frozen=True)
class Batch:
    tokens: Tensor
    """[rows, length] int64"""
    weights: Tensor
    """[rows, length] F32, of each token as a target."""


Sample = tuple[list[int], list[float]]


class Batches:
    """An endless stream. The same seed and place give the same batches."""

    def __init__(self, pool: Pool, encoder: Encoder, pad: int, seed: str) -> None:
        self._pool, self._encoder, self._pad, self._seed = pool, encoder, pad, seed
        self.place = 0
        """Pools made so far; a resumed run goes on with the next."""
        self._ready: list[Batch] = []

    def next(self, progress: float) -> Batch:
        if not self._ready:
            rng = random.Random(f"{self._seed}-{self.place}")
            stage = next(stage for stage in STAGES if progress < stage.until)
            self._ready = self._made(stage, rng)
            self.place += 1
        return self._ready.pop()

    def _made(self, stage: Stage, rng: random.Random) -> list[Batch]:
        samples: list[Sample] = []
        while sum(len(ids) for ids, _ in samples) < TOKENS * POOL:
            (kind,) = rng.choices(list(stage.mix), list(stage.mix.values()))
            bare = rng.random() < stage.bare
            for trace in MAKERS[kind](self._pool, rng):
                ids, weights = self._encoder(trace, bare=bare)
                if len(ids) <= stage.longest and any(weights):
                    samples.append((ids, weights))
        samples.sort(key=lambda sample: -len(sample[0]))
        batches: list[Batch] = []
        while samples:
            length = -(-len(samples[0][0]) // STEP) * STEP
            rows = max(1, round(TOKENS / length))
            if len(samples) >= rows or not batches:
                batches.append(padded(samples[:rows], length, self._pad))
            samples = samples[rows:]
        rng.shuffle(batches)
        return batches


def padded(samples: list[Sample], length: int, pad: int) -> Batch:
    tokens = torch.full((len(samples), length), pad)
    weights = torch.zeros(len(samples), length)
    for row, (ids, learnt) in enumerate(samples):
        tokens[row, : len(ids)] = torch.tensor(ids)
        weights[row, : len(ids)] = torch.tensor(learnt)
    return Batch(tokens, weights)


def evaluation(pool: Pool, encoder: Encoder, pad: int, seed: str, count: int) -> Iterator[tuple[str, Batch]]:
    """`count` held-out traces of each kind, one a batch."""
    rng = random.Random(seed)
    for kind, make in MAKERS.items():
        found = 0
        while found < count:
            for ids, weights in map(encoder, make(pool, rng)):
                if found < count and len(ids) <= LONGEST and any(weights):
                    found += 1
                    yield kind, padded([(ids, weights)], -(-len(ids) // STEP) * STEP, pad)
