"""Greedy output in F32 does not depend on batching, chunking, preemption, prefix hits or arrival order.

Every call is first answered alone by a fresh engine, its prompt in one piece; then all calls go through
engines with random small limits, arriving at random steps, and must get the same token ids.

What this rests on: every row is computed by the same formulas in F32, and a sequence's draws are its own.
The matrix library may round the last bit differently for another batch shape, so two logits closer than
that (about one token in a million) could change places; a difference is accepted only if F64 shows such a
tie, and at most once in all.
"""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
import torch

from perilune.engine.loop import Engine
from perilune.engine.protocol import Chunk, EngineOptions, Generate, Stats, Vocabulary
from perilune.model.attention import CausalAttention
from perilune.model.text import TextDecoder
from perilune.model.tiny import TINY, random_decoder

NO_BYTES = Vocabulary(tokens=(), special_ids=(), eos_id=0)
SCHEDULES = 8
TIE = 1e-5


def make_calls(draws: random.Random, count: int) -> list[Generate]:
    """Prompts that share beginnings with each other, some greedy, some sampled, some stopping early."""
    stems = [[draws.randrange(TINY.vocab_size) for _ in range(draws.randint(3, 24))] for _ in range(3)]
    calls = []
    for id in range(count):
        stem = draws.choice(stems)
        prompt = stem[: draws.randint(1, len(stem))] + [
            draws.randrange(TINY.vocab_size) for _ in range(draws.randint(0, 16))
        ]
        calls.append(
            Generate(
                id=id,
                prompt=tuple(prompt),
                max_tokens=draws.randint(1, 45),
                temperature=draws.choice([0.0, 0.0, 0.0, 0.8]),
                top_p=draws.choice([1.0, 0.7]),
                seed=id,
                stop_ids=tuple(draws.sample(range(TINY.vocab_size), 3)),
                banned_ids=tuple(draws.sample(range(TINY.vocab_size), 4)),
                cache_salt=draws.choice(["", "other"]),
            )
        )
    return calls


def run(engine: Engine, calls: list[Generate], draws: random.Random | None) -> dict[int, list[int]]:
    """The output of every call; with `draws` they arrive while others run."""
    outputs: dict[int, list[int]] = {call.id: [] for call in calls}
    ahead = list(calls)
    while ahead or engine.busy:
        while ahead and (draws is None or draws.random() < 0.4):
            assert engine.submit(ahead.pop()) == []
        for reply in engine.step():
            assert isinstance(reply, Chunk), reply
            outputs[reply.id] += reply.token_ids
        engine.stats()
    return outputs


def random_options(draws: random.Random) -> EngineOptions:
    return EngineOptions(
        checkpoint="",
        block_size=draws.choice([1, 2, 4, 8, 16]),
        # Down to what one call alone needs: preemption is the rule.
        cache_tokens=draws.choice([88, 88, 128, 4000]),
        max_batch_tokens=draws.choice([4, 9, 32, 2048]),
        max_sequences=draws.choice([3, 8, 64]),
        threads=1,
    )


def fuzz(model: TextDecoder, seed: int, schedules: int) -> Stats:
    """Compare `schedules` random engines with lone calls; the counters of them all together."""
    draws = random.Random(seed)
    calls = make_calls(draws, 14)
    alone: dict[int, list[int]] = {}
    whole = EngineOptions(checkpoint="", cache_tokens=4000, threads=1)
    for call in calls:
        alone |= run(Engine(model, whole, NO_BYTES), [call], None)
    total: dict[str, int] = {}
    ties: list[Generate] = []
    for _ in range(schedules):
        options = random_options(draws)
        engine = Engine(model, options, NO_BYTES)
        got = run(engine, draws.sample(calls, len(calls)), draws)
        for call in calls:
            if got[call.id] != alone[call.id]:
                assert is_tie(model, call, got[call.id], alone[call.id]), f"seed {seed}, {options}, {call}"
                ties.append(call)
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
        for name in stats.__struct_fields__:
            total[name] = total.get(name, 0) + getattr(stats, name)
    assert len(ties) <= 1
    return Stats(**total)


def is_tie(model: TextDecoder, call: Generate, one: list[int], other: list[int]) -> bool:
    """Whether the first difference of two greedy outputs is between logits that only rounding orders."""
    at = next(place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    ids = torch.tensor([*call.prompt, *one[:at]])
    with torch.no_grad():
        wide = copy.deepcopy(model).double()
        hidden = wide(ids, torch.arange(len(ids)), CausalAttention(1, len(ids)))
        logits = wide.lm_head(hidden[-1])
    return call.temperature == 0 and abs(float(logits[one[at]] - logits[other[at]])) < TIE


@pytest.mark.parametrize("seed", range(3))
def test_fuzzed_schedules_give_what_lone_calls_give(seed: int) -> None:
    total = fuzz(random_decoder(TINY, seed=seed), seed, SCHEDULES)
    # The schedules did what they are for.
    assert total.preemptions > 0
    assert total.tokens_from_cache > 0


def test_other_shapes_give_the_same() -> None:
    model = random_decoder(replace(TINY, q_lora_rank=None, kv_lora_rank=20, num_attention_heads=3), seed=9)
    fuzz(model, 9, 4)


def test_two_threads_give_the_same() -> None:
    model = random_decoder(TINY, seed=5)
    calls = make_calls(random.Random(5), 3)
    outputs = []
    for threads in (1, 2):
        options = EngineOptions(checkpoint="", cache_tokens=4000, threads=threads)
        outputs.append(run(Engine(model, options, NO_BYTES), calls, None))
    torch.set_num_threads(1)
    assert outputs[0] == outputs[1]
