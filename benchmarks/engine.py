"""How fast the engine computes a K2-type model of 121 M parameters with random weights, in BF16 on the CPU.

    python benchmarks/engine.py [--quick] [--json]

`prefill_tok_s`: one prompt, nothing of it cached. `decode_tok_s_1` and `_32`: one call, and 32 at once,
from the first sampled token to the last. The engine runs in this process, with its scheduler, cache and
sampling but without the socket. `transformers` computes the same weights in the same run, turn by turn with
ours, where it is installed. Figures are medians of the runs; `*_cpu_share` is CPU time over wall time (2: two
cores busy), so a figure taken on a busy machine shows. `--json` prints one flat object on the last line.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from perilune.engine.loop import Engine
from perilune.engine.protocol import Chunk, EngineOptions, Generate, Vocabulary
from perilune.model.config import TextConfig, Yarn
from perilune.model.text import TextDecoder
from perilune.model.tiny import random_decoder

SHAPE = TextConfig(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1536,
    moe_intermediate_size=256,
    num_hidden_layers=8,
    num_attention_heads=8,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    n_routed_experts=32,
    num_experts_per_tok=4,
    q_lora_rank=256,
    routed_scaling_factor=2.827,
    yarn=Yarn(factor=64.0, original_max_position_embeddings=4096),
    max_position_embeddings=262144,
)
NO_BYTES = Vocabulary(tokens=(), special_ids=(), eos_id=0)
DECODE_PROMPT = 64
WIDE_BATCH = 32


@dataclass(frozen=True)
class Plan:
    runs: int
    prefill: int
    """Prompt tokens of a prefill run."""
    decode: int
    """Tokens generated per sequence."""


FULL = Plan(runs=5, prefill=512, decode=24)
QUICK = Plan(runs=1, prefill=128, decode=8)


@dataclass
class Timer:
    """Collects tokens per second and the CPU share of a measured part."""

    rates: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def time(self, tokens: int, part: Callable[[], object]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        part()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.rates.append(tokens / wall)
        self.shares.append(cpu / wall)


class Ours:
    prefix = ""

    def __init__(self, model: TextDecoder) -> None:
        options = EngineOptions(checkpoint="", dtype="bfloat16", cache_tokens=16384)
        self._engine = Engine(model, options, NO_BYTES)
        self._id = 0

    def submit(self, prompts: list[list[int]], max_tokens: int) -> None:
        for prompt in prompts:
            self._id += 1
            refused = self._engine.submit(
                Generate(id=self._id, prompt=tuple(prompt), max_tokens=max_tokens, cache_salt=str(self._id))
            )
            assert not refused, refused

    def finish(self) -> None:
        while self._engine.busy:
            assert all(isinstance(reply, Chunk) for reply in self._engine.step())

    def prefill(self, prompt: list[int]) -> None:
        self.submit([prompt], 1)
        self.finish()

    def start(self, prompts: list[list[int]], decode: int) -> Callable[[], object]:
        """Compute the prompts; the rest is the decoding to be timed."""
        self.submit(prompts, decode)
        # Every call's first token comes from its prompt, the rest is decoding.
        answered = 0
        while answered < len(prompts):
            answered += sum(
                isinstance(reply, Chunk) and reply.prompt_tokens > 0 for reply in self._engine.step()
            )
        return self.finish


class Transformers:
    prefix = "transformers_"

    def __init__(self, model: TextDecoder) -> None:
        import transformers

        apart = {"yarn", "quantization", "latent_norm_eps"}
        fields = {name: value for name, value in vars(SHAPE).items() if name not in apart}
        config = transformers.DeepseekV3Config(
            **fields,
            num_key_value_heads=SHAPE.num_attention_heads,
            n_group=1,
            topk_group=1,
            rope_scaling={**vars(SHAPE.yarn), "type": "yarn"},
        )
        self._model = transformers.DeepseekV3ForCausalLM(config).to(torch.bfloat16).eval()
        self._model.load_state_dict(model.state_dict())

    @torch.inference_mode()
    def prefill(self, prompt: list[int]) -> None:
        self._model(torch.tensor([prompt]), logits_to_keep=1)

    @torch.inference_mode()
    def start(self, prompts: list[list[int]], decode: int) -> Callable[[], object]:
        out = self._model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)

        @torch.inference_mode()
        def rest() -> None:
            last = out
            for _ in range(decode - 1):
                token = last.logits[:, -1:].argmax(dim=-1)
                last = self._model(token, past_key_values=last.past_key_values, use_cache=True)

        return rest


def measure(engines: list[Any], plan: Plan) -> dict[str, float]:
    draws = random.Random(0)

    def prompts(count: int, length: int) -> list[list[int]]:
        return [[draws.randrange(SHAPE.vocab_size) for _ in range(length)] for _ in range(count)]

    timers: dict[str, Timer] = {}
    # The first round warms up and is thrown away.
    for round_ in range(plan.runs + 1):
        if round_ <= 1:
            timers = {}
        for engine in engines:
            prompt = prompts(1, plan.prefill)[0]
            timer = timers.setdefault(f"{engine.prefix}prefill_tok_s", Timer())
            timer.time(plan.prefill, lambda engine=engine, prompt=prompt: engine.prefill(prompt))  # type: ignore[misc]
            for batch in (1, WIDE_BATCH):
                rest = engine.start(prompts(batch, DECODE_PROMPT), plan.decode)
                timer = timers.setdefault(f"{engine.prefix}decode_tok_s_{batch}", Timer())
                timer.time(batch * (plan.decode - 1), rest)
    figures: dict[str, float] = {}
    for name, timer in timers.items():
        figures[name] = round(statistics.median(timer.rates), 1)
        figures[name.replace("_tok_s", "") + "_cpu_share"] = round(statistics.median(timer.shares), 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--json", action="store_true", help="one flat JSON object on the last line")
    arguments = parser.parse_args()
    model = random_decoder(SHAPE).to(torch.bfloat16)
    engines: list[Any] = [Ours(model)]
    try:
        engines.append(Transformers(model))
    except ImportError:
        print("transformers is not installed: no peer in this run")
    figures = measure(engines, QUICK if arguments.quick else FULL)
    for name, value in figures.items():
        print(f"{name:40} {value:12,.1f}")
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
