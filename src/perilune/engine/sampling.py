"""The next token of every sequence that is ready for one, from one batch of logits.

What a sequence gets depends on its own row, options and generator only, never on its neighbours: greedy
takes the first of the largest logits; otherwise one number from the sequence's generator picks along the
cumulative probabilities, computed in F64.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from perilune.engine.grammar import Grammars
from perilune.engine.sequence import Sequence
from perilune.errors import InputError, NonFiniteLogits, PeriluneError

LIKELY = 1024
"""For top_p, so many of the most probable tokens are looked at before all are sorted."""


def choose(
    logits: Tensor, sequences: SequenceOf[Sequence], grammars: Grammars | None
) -> list[int | PeriluneError]:
    """logits [S, vocab], overwritten -> per sequence its next token, or why there is none."""
    finite = logits.sum(dim=-1).isfinite().tolist()
    _ban(logits, sequences)
    constrained = [row for row, s in enumerate(sequences) if s.grammar is not None and s.grammar.active]
    if constrained:
        assert grammars is not None
        states = [sequences[row].grammar for row in constrained]
        allowed = grammars.allowed([state for state in states if state is not None])
        logits[constrained] = logits[constrained].masked_fill_(~allowed.to(logits.device), float("-inf"))
    best, greedy = logits.max(dim=-1)
    tokens: list[int] = greedy.tolist()
    possible = best.tolist()
    drawable = [ok and top > float("-inf") for ok, top in zip(finite, possible, strict=True)]
    drawn = [row for row, s in enumerate(sequences) if s.call.temperature > 0 and drawable[row]]
    if drawn:
        for row, token in zip(drawn, _draw(logits[drawn], [sequences[row] for row in drawn]), strict=True):
            tokens[row] = token
    return [_token_or_error(token, ok, top) for token, ok, top in zip(tokens, finite, possible, strict=True)]


def _token_or_error(token: int, finite: bool, best: float) -> int | PeriluneError:
    if not finite:
        return NonFiniteLogits(
            "the model computed NaN or infinity", mend="check the checkpoint; bfloat16 may need float32"
        )
    if best == float("-inf"):
        return InputError("no token is allowed any more", field="grammar", mend="ban fewer ids")
    return token


def _ban(logits: Tensor, sequences: SequenceOf[Sequence]) -> None:
    rows_by_ids: dict[tuple[int, ...], list[int]] = {}
    for row, sequence in enumerate(sequences):
        if ids := sequence.banned_ids:
            rows_by_ids.setdefault(ids, []).append(row)
    for ids, rows in rows_by_ids.items():
        logits[torch.tensor(rows)[:, None], torch.tensor(ids)] = float("-inf")


def _draw(logits: Tensor, sequences: SequenceOf[Sequence]) -> list[int]:
    """logits [R, vocab] -> one token each, by the sequence's temperature, top_p and generator."""
    heat = torch.tensor([s.call.temperature for s in sequences], dtype=torch.float64, device=logits.device)
    wide = logits.double()
    wide -= wide.amax(dim=-1, keepdim=True)
    # A temperature next to zero overflows to -inf here, which is right.
    probabilities = wide.div_(heat[:, None]).softmax(dim=-1)
    tokens = []
    for row, sequence in zip(probabilities, sequences, strict=True):
        place = sequence.draws.random()
        tokens.append(_pick(row, place) if sequence.call.top_p == 1 else _pick_top(row, place, sequence))
    return tokens


def _pick(row: Tensor, place: float) -> int:
    """row [vocab] of probabilities, place in [0, 1) -> the token at that place of the cumulative sum."""
    summed = row.cumsum(0)
    at = int(torch.searchsorted(summed, place * float(summed[-1]), right=True))
    # Rounding may carry `place` past the last token that has any probability.
    return min(at, int(row.nonzero()[-1]))


def _pick_top(row: Tensor, place: float, sequence: Sequence) -> int:
    """_pick among the fewest tokens whose probabilities reach top_p together."""
    top_p = sequence.call.top_p
    values, ids = row.topk(min(LIKELY, len(row)))
    if float(values.sum()) < top_p:
        values, ids = row.sort(descending=True, stable=True)
    kept = int((values.cumsum(0) - values < top_p).sum())
    return int(ids[_pick(values[:kept], place)])
