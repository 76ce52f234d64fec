"""In deterministic mode no logit of a call changes by one bit, whatever else the engine computes.

Calls are answered alone first, then in random schedules: other limits, other companions, prompts in pieces,
cached prefixes, preemption. Compared are the logits of every sampled token, as bytes.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from perilune.engine.loop import Engine
from perilune.engine.protocol import Chunk, EngineOptions, Generate, Stats, Vocabulary
from perilune.engine.scheduler import Part, Step
from perilune.errors import ConfigError
from perilune.model.attention import CausalAttention
from perilune.model.kernels.fixed_tiles import ROWS
from perilune.model.load import load_model
from perilune.model.text import Experts, TextDecoder
from perilune.model.tiny import TINY, random_decoder, write_tiny_checkpoint

NO_BYTES = Vocabulary(tokens=(), special_ids=(), eos_id=0)
Logits = dict[tuple[int, int], bytes]
"""(call, length before the token) -> the logits it was sampled from."""

SHAPES = {
    "tiny": TINY,
    "uneven": replace(
        TINY,
        q_lora_rank=None,
        kv_lora_rank=20,
        num_attention_heads=3,
        qk_nope_head_dim=24,
        v_head_dim=40,
        quantization=None,
        hidden_size=72,
        moe_intermediate_size=56,
        num_experts_per_tok=3,
    ),
    "many_heads": replace(TINY, num_attention_heads=40, num_hidden_layers=2),
}


def make_calls(draws: random.Random, count: int) -> list[Generate]:
    """Prompts with shared beginnings, some longer than several tiles of keys; most of them sampled."""
    lengths = [draws.choice([5, 40, 150, 150]) for _ in range(3)]
    stems = [[draws.randrange(TINY.vocab_size) for _ in range(length)] for length in lengths]
    calls = []
    for id in range(count):
        stem = draws.choice(stems)
        tail = [draws.randrange(TINY.vocab_size) for _ in range(draws.randint(1, 40))]
        calls.append(
            Generate(
                id=id,
                prompt=(*stem[: draws.randint(1, len(stem))], *tail),
                max_tokens=draws.randint(10, 60),
                temperature=draws.choice([0.0, 0.7, 1.0]),
                top_p=draws.choice([1.0, 0.8]),
                seed=id,
            )
        )
    return calls


def run(
    model: TextDecoder, options: EngineOptions, calls: list[Generate], draws: random.Random | None = None
) -> tuple[Logits, Stats]:
    """All logits that tokens were sampled from; with `draws` calls arrive while others run."""
    engine = Engine(model, options, NO_BYTES)
    seen: Logits = {}
    compute = engine._runner.run

    def recorded(step: Step) -> Tensor:
        logits = compute(step)
        sampling: list[Part] = [part for part in step.parts if part.samples]
        for part, row in zip(sampling, logits, strict=True):
            seen[part.sequence.call.id, len(part.sequence.tokens)] = row.numpy().tobytes()
        return logits

    engine._runner.run = recorded  # type: ignore[method-assign]
    ahead = list(calls)
    while ahead or engine.busy:
        while ahead and (draws is None or draws.random() < 0.4):
            assert engine.submit(ahead.pop()) == []
        for reply in engine.step():
            assert isinstance(reply, Chunk), reply
    return seen, engine.stats()


def options(**limits: int) -> EngineOptions:
    wanted = {"cache_tokens": 4000, "threads": 1} | limits
    return EngineOptions(checkpoint="", deterministic=True, **wanted)  # type: ignore[arg-type]


def random_options(draws: random.Random) -> EngineOptions:
    return options(
        block_size=draws.choice([1, 4, 8, 16]),
        cache_tokens=draws.choice([256, 256, 288]),
        max_batch_tokens=draws.choice([4, 9, 33, 70, 2048]),
        max_sequences=draws.choice([3, 8, 64]),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_no_schedule_changes_a_bit(shape: str) -> None:
    draws = random.Random(shape)
    model = random_decoder(SHAPES[shape], seed=3)
    calls = make_calls(draws, 14)
    alone: Logits = {}
    for call in calls:
        alone |= run(model, options(), [call])[0]
    preemptions = cached = 0
    for _ in range(4):
        limits = random_options(draws)
        got, stats = run(model, limits, draws.sample(calls, len(calls)), draws)
        assert got == alone, f"{limits}: {[key for key in alone if got.get(key) != alone[key]][:3]}"
        preemptions += stats.preemptions
        cached += stats.tokens_from_cache
    # The schedules did what they are for.
    assert preemptions > 0
    assert cached > 0


def test_experts_in_their_files_give_the_bits_of_memory(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, seed=3)
    calls = make_calls(random.Random(2), 6)
    alone: Logits = {}
    for call in calls:
        alone |= run(load_model(tmp_path), options(), [call])[0]
    from_files = load_model(tmp_path, experts="files")
    assert run(from_files, options(max_batch_tokens=33), calls, random.Random(2))[0] == alone


def test_the_usual_mode_would_not_pass() -> None:
    """Else the test above shows nothing."""
    draws = random.Random(1)
    model = random_decoder(TINY, seed=3)
    calls = make_calls(draws, 14)
    usual = EngineOptions(checkpoint="", cache_tokens=4000, threads=1)
    alone: Logits = {}
    for call in calls:
        alone |= run(model, usual, [call])[0]
    assert run(model, usual, calls)[0] != alone


def test_it_is_the_same_function() -> None:
    model = random_decoder(SHAPES["uneven"], seed=4)
    draws = random.Random(4)
    call = Generate(
        id=0, prompt=tuple(draws.randrange(TINY.vocab_size) for _ in range(300)), max_tokens=1, seed=0
    )
    ids = torch.tensor(call.prompt)
    with torch.no_grad():
        want = model.logits(model(ids, torch.arange(300), CausalAttention(1, 300)))[-1]
    seen, _ = run(model, options(), [call])
    got = torch.frombuffer(bytearray(seen[0, 300]), dtype=torch.float32)
    assert want.abs().max() > 1.0
    assert (got - want).abs().max() <= 1e-5


def test_what_a_companion_computes_without_bound_stays_its_own() -> None:
    """An expert that overflows for one row must not reach the rows that did not choose it."""
    experts = Experts(
        replace(TINY, n_routed_experts=2, hidden_size=4, moe_intermediate_size=3, quantization=None)
    )
    with torch.no_grad():
        experts.gate_up_proj.normal_()[1] = 1e38
        experts.down_proj.normal_()
    experts.fixed_tiles = True
    chosen = torch.zeros(ROWS, 1, dtype=torch.int64)
    chosen[0] = 1
    with torch.no_grad():
        out = experts(torch.rand(ROWS, 4) + 1, chosen, torch.ones(ROWS, 1))
    assert not out[0].isfinite().all()
    assert out[1:].isfinite().all()


def test_bfloat16_is_refused() -> None:
    both = EngineOptions(checkpoint="", deterministic=True, dtype="bfloat16")
    with pytest.raises(ConfigError, match="deterministic: needs dtype float32"):
        Engine(random_decoder(TINY), both, NO_BYTES)
