"""The engine in BF16 gives what F32 gives, as far as 8 bits of a number go."""

from __future__ import annotations

from pathlib import Path

import torch

import perilune
from perilune.chat.tokenizer import Tokenizer
from perilune.engine.loop import Engine
from perilune.engine.protocol import Chunk, EngineOptions, Generate, Vocabulary
from perilune.engine.scheduler import Step

NO_BYTES = Vocabulary(tokens=(), special_ids=(), eos_id=0)
FOLDER = Path(perilune.__file__).parent / "nano_checkpoint"
TEXT = "def total(values):\n    return sum(values)\n\n\ndef mean(values):\n    return total(values) / len("


def run(dtype: str, calls: list[Generate]) -> tuple[dict[int, list[int]], list[torch.Tensor]]:
    """Outputs by call, and the logits of every step, calls side by side."""
    options = EngineOptions(checkpoint=str(FOLDER), dtype=dtype, cache_tokens=4000, threads=1)  # type: ignore[arg-type]
    engine = Engine.load(options, NO_BYTES)
    compute, seen = engine._runner.run, []

    def recorded(step: Step) -> torch.Tensor:
        logits = compute(step)
        seen.append(logits.clone())
        return logits

    engine._runner.run = recorded  # type: ignore[method-assign]
    outputs: dict[int, list[int]] = {call.id: [] for call in calls}
    for call in calls:
        assert engine.submit(call) == []
    while engine.busy:
        for reply in engine.step():
            assert isinstance(reply, Chunk), reply
            outputs[reply.id] += reply.token_ids
    return outputs, seen


def test_bfloat16_follows_float32() -> None:
    """A logit passes some 10 layers, each of which rounds to 1 part in 256: a few hundredths of their spread.
    What the model is sure of stays what it says."""
    ids = tuple(Tokenizer.load(FOLDER).encode(TEXT))
    calls = [Generate(id=n, prompt=ids[: len(ids) - n], max_tokens=4) for n in range(3)]
    wide, in_f32 = run("float32", calls)
    narrow, in_bf16 = run("bfloat16", calls)
    assert all(logits.dtype == torch.float32 for logits in in_bf16)
    spread = in_f32[0].std()
    error = (in_f32[0] - in_bf16[0]).abs()
    assert 0 < error.mean() < 0.03 * spread
    assert error.max() < 0.15 * spread
    assert narrow == wide
