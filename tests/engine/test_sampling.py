"""One row of logits, one choice: independent of the other rows."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from perilune.engine import sampling
from perilune.engine.protocol import Generate
from perilune.engine.sampling import choose
from perilune.engine.sequence import Sequence, open_sequence
from perilune.errors import InputError, NonFiniteLogits

VOCAB = 50


def sequence(**options: Any) -> Sequence:
    return open_sequence(Generate(id=1, prompt=(1,), max_tokens=5, **options), VOCAB, 100)


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def drawn(logits: Tensor, count: int, **options: Any) -> Counter[Any]:
    one = sequence(temperature=1.0, seed=3, **options)
    return Counter(choose(logits[None].clone(), [one], None)[0] for _ in range(count))


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[0, [9, 4, 30]] = 2.0
    logits[1, 17] = 1.0
    assert choose(logits, [sequence(), sequence()], None) == [4, 17]


def test_banned_ids_are_never_chosen() -> None:
    logits = rows(3)
    best = logits.argsort(dim=-1, descending=True).tolist()
    bans = [tuple(best[0][:2]), (), tuple(best[2][:1])]
    got = choose(logits, [sequence(banned_ids=ids) for ids in bans], None)
    assert got == [best[0][2], best[1][0], best[2][1]]


def test_banning_everything_is_an_error_of_that_call() -> None:
    got = choose(rows(2), [sequence(banned_ids=tuple(range(VOCAB))), sequence()], None)
    assert isinstance(got[0], InputError)
    assert isinstance(got[1], int)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_logits_stop_only_their_row(value: float) -> None:
    logits = rows(3)
    want = logits.argmax(dim=-1).tolist()
    logits[1, 20] = value
    got = choose(logits, [sequence(temperature=t) for t in (0, 1, 0)], None)
    assert isinstance(got[1], NonFiniteLogits)
    assert [got[0], got[2]] == [want[0], want[2]]


def test_draws_follow_the_probabilities() -> None:
    logits = torch.full((VOCAB,), -50.0)
    logits[[5, 6, 7]] = torch.tensor([0.6, 0.3, 0.1]).log()
    got = drawn(logits, 3000)
    assert set(got) == {5, 6, 7}
    assert got[5] / 3000 == pytest.approx(0.6, abs=0.04)
    assert got[7] / 3000 == pytest.approx(0.1, abs=0.02)


def test_temperature_sharpens_and_near_zero_is_greedy() -> None:
    logits = rows(1)[0]
    best = int(logits.argmax())
    cold = Counter(
        choose(logits[None].clone(), [sequence(temperature=1e-300, seed=n)], None)[0] for n in range(20)
    )
    assert cold == {best: 20}
    flat = torch.zeros(VOCAB)
    flat[3] = 1.0
    hot = drawn(flat, 1500)[3]
    one = sequence(temperature=0.2, seed=3)
    cool = sum(choose(flat[None].clone(), [one], None)[0] == 3 for _ in range(1500))
    assert cool > 5 * hot


@pytest.mark.parametrize("likely", [2, 1024])
def test_top_p_keeps_the_fewest_that_reach_it(monkeypatch: pytest.MonkeyPatch, likely: int) -> None:
    monkeypatch.setattr(sampling, "LIKELY", likely)
    logits = torch.full((VOCAB,), -50.0)
    logits[[40, 2, 30, 8]] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert set(drawn(logits, 300, top_p=0.69)) == {40, 2}
    assert set(drawn(logits, 300, top_p=0.71)) == {40, 2, 30}
    assert set(drawn(logits, 50, top_p=0.01)) == {40}


def test_a_seed_gives_the_same_whatever_the_batch() -> None:
    logits = rows(6)
    options = [{"temperature": 1.0, "seed": n, "top_p": p} for n, p in enumerate([1, 0.9, 1, 0.5, 0.9, 1.0])]
    together = choose(logits.clone(), [sequence(**each) for each in options], None)
    alone = [
        choose(row[None].clone(), [sequence(**each)], None)[0]
        for row, each in zip(logits, options, strict=True)
    ]
    backwards = choose(logits.flip(0), [sequence(**each) for each in options[::-1]], None)[::-1]
    assert together == alone == backwards


def test_without_a_seed_calls_differ() -> None:
    flat = torch.zeros(40, VOCAB)
    got = choose(flat, [sequence(temperature=1.0) for _ in range(40)], None)
    assert len(set(got)) > 5
