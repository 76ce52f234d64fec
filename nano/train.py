"""Train the bundled model: one single-threaded process a core, resumable.

    python -m nano.train --tokens 30e6 --minutes 60

starts (or resumes) one process per rank. A leg ends when either limit is reached; the learning rate
follows whichever is nearer. Every few minutes each rank writes its share to WORK/rank-N.pt; the same
command goes on from there, with new limits for what is left if they are given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from nano import corpus
from nano.batches import BESIDE, Batch, Batches, evaluation
from nano.names import Pool
from nano.optimiser import Sharded
from nano.shape import config_for
from nano.traces import Encoder
from nano.wiring import initialise
from perilune.chat.tokenizer import Tokenizer
from perilune.model.attention import CausalAttention
from perilune.model.text import TextDecoder

RATE, LOWEST_RATE = 4e-3, 0.015
WARM_UP_STEPS = 40
CONSTANT_UNTIL = 0.40
INT4_FROM = 0.86
INT4_GROUP = 32
BIAS_STEP = 0.02
"""How fast a router's selection bias moves towards equal loads, at the start."""
REPORT_SECONDS = 15.0
SELECTED_TO = 128
"""Positions with a loss are filled up to a multiple of this, for products of few shapes."""
EVALUATED = 10
"""Held-out traces of each kind, on each rank."""


@dataclass
class Progress:
    """How far the training is: a share from 0 to 1, with the counts behind it."""

    share: float = 0.0
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        falling = max(LOWEST_RATE, (1 - self.share) / (1 - CONSTANT_UNTIL))
        return RATE * min(1.0, (self.step + 1) / WARM_UP_STEPS, falling)


class Trainer:
    """One rank's work."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.rank, self.world, self.work = options.rank, options.ranks, options.work
        self._tokens, self._seconds = options.tokens, options.minutes * 60
        self._save_seconds = options.save_seconds
        tokenizer = Tokenizer.load(self.work / "tokenizer")
        self._pad = tokenizer.special("[PAD]")
        self._encoder = Encoder(tokenizer)
        data = corpus.load(self.work / "corpus.msgpack")
        self._held = Pool.held_out(data)
        seed = f"{options.seed}-{self.rank}"
        self._batches = Batches(Pool.training(data), self._encoder, self._pad, seed)
        self.decoder = TextDecoder(config_for(tokenizer))
        initialise(self.decoder, options.seed)
        self._optimiser = Sharded(self.decoder, self.rank, self.world)
        self._to_bfloat16()
        self._random = torch.Generator().manual_seed(options.seed * 1000 + self.rank)
        self.progress = Progress()
        if self._file.exists():
            self._restore()
        self._optimiser.publish()

    @property
    def _file(self) -> Path:
        return Path(self.work / f"rank-{self.rank}.pt")

    def _to_bfloat16(self) -> None:
        """Weights in BF16, selection biases (buffers) in F32."""
        for parameter in self.decoder.parameters():
            parameter.data = parameter.data.bfloat16()

    # ---- the loop

    def run(self) -> None:
        started = saved = reported = time.monotonic()
        tokens_before, average = self.progress.tokens, [0.0, 0.0]
        while self.progress.share < 1:
            begun = time.monotonic()
            figures = self._step()
            tokens, loss, accuracy = figures[:3]
            self._advance(int(tokens), time.monotonic() - begun)
            average = [old * 0.95 + new * 0.05 for old, new in zip(average, (loss, accuracy), strict=True)]
            now = time.monotonic()
            if self.rank == 0 and now - reported > REPORT_SECONDS:
                reported = now
                speed = (self.progress.tokens - tokens_before) / (now - started)
                self._report(speed, average, figures[3], figures[4])
            if self._agreed(now - saved > self._save_seconds):
                saved = now
                self.save()
                self._evaluate()
        self.save()
        self._evaluate()

    def _step(self) -> tuple[float, float, float, float, float]:
        """One update: (tokens of all ranks, mean loss, accuracy, gradient norm, worst expert load)."""
        if self.progress.share >= INT4_FROM:
            self._optimiser.int4_group = INT4_GROUP
        batch = self._batches.next(self.progress.share)
        loss, right = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        loads = torch.stack([router.loads.float() for router in self.decoder.routers])
        sums = torch.cat(
            [torch.tensor([float(batch.tokens.numel()), float(loss.detach()), right]), loads.flatten()]
        )
        dist.all_reduce(sums)
        norm = self._optimiser.step(self.progress.step, self.progress.rate)
        loads = sums[3:].view_as(loads)
        self._balance(loads)
        worst = float((loads.amax(1) / loads.mean(1)).max())
        return float(sums[0]), float(sums[1]) / self.world, float(sums[2]) / self.world, norm, worst

    def _loss(self, batch: Batch) -> tuple[Tensor, float]:
        """Weighted cross-entropy of the learnt targets, and the share of trained ones that are right."""
        rows, length = batch.tokens.shape
        beside = torch.rand(rows, length, generator=self._random) < BESIDE[0]
        beside &= (batch.weights == 0) & (batch.tokens != self._pad)
        weights = (batch.weights + beside * BESIDE[1]).flatten()
        weights[::length] = 0
        targets = weights.nonzero()[:, 0]
        targets = F.pad(targets, (0, -len(targets) % SELECTED_TO), value=1)
        share = weights[targets]
        share[int((weights > 0).sum()) :] = 0
        hidden = self._hidden(batch.tokens)
        logits = self.decoder.logits(hidden[targets - 1])
        wanted = batch.tokens.flatten()[targets]
        each = F.cross_entropy(logits, wanted, reduction="none")
        trained = share >= 1
        right = ((logits.argmax(-1) == wanted) & trained).sum() / trained.sum()
        return (each * share).sum() / share.sum(), float(right)

    def _hidden(self, tokens: Tensor) -> Tensor:
        rows, length = tokens.shape
        positions = torch.arange(length).repeat(rows)
        out: Tensor = self.decoder(tokens.flatten(), positions, CausalAttention(rows, length))
        return out

    def _balance(self, loads: Tensor) -> None:
        step = BIAS_STEP * max(0.05, 1 - self.progress.share)
        for router, load in zip(self.decoder.routers, loads, strict=True):
            router.e_score_correction_bias += step * torch.sign(load.mean() - load)

    def _advance(self, tokens: int, seconds: float) -> None:
        """Move on by tokens or by time, whichever says more; all ranks alike."""
        longest = torch.tensor([seconds])
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        seconds = float(longest)
        at = self.progress
        at.step += 1
        at.tokens += tokens
        at.seconds += seconds
        at.share += max(tokens / self._tokens, seconds / self._seconds)

    def _agreed(self, wish: bool) -> bool:
        """Rank 0's word for all."""
        word = torch.tensor([float(wish)])
        dist.broadcast(word, 0)
        return bool(word)

    # ---- what is kept and said

    def save(self) -> None:
        state = {
            "progress": vars(self.progress),
            "place": self._batches.place,
            "optimiser": self._optimiser.state(),
            "biases": [router.e_score_correction_bias for router in self.decoder.routers],
        }
        temporary = self._file.with_suffix(".tmp")
        torch.save(state, temporary)
        # Both ranks or neither: a kill between the two renames shows as different steps.
        dist.barrier()
        os.replace(temporary, self._file)
        dist.barrier()

    def _restore(self) -> None:
        state: dict[str, Any] = torch.load(self._file, weights_only=True)
        self.progress = Progress(**state["progress"])
        self._batches.place = state["place"]
        self._optimiser.int4_group = INT4_GROUP if self.progress.share >= INT4_FROM else None
        self._optimiser.restore(state["optimiser"])
        for router, bias in zip(self.decoder.routers, state["biases"], strict=True):
            router.e_score_correction_bias.copy_(bias)
        steps = torch.tensor([self.progress.step, -self.progress.step])
        dist.all_reduce(steps, dist.ReduceOp.MAX)
        if int(steps[0]) != -int(steps[1]):
            raise SystemExit("the ranks' files are of different steps: go back to an older copy of WORK")

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Held-out traces, teacher-forced: share of whole traces exact, and the token error."""
        seed = f"evaluation-{self.rank}"
        kinds: dict[str, Tensor] = {}
        for kind, batch in evaluation(self._held, self._encoder, self._pad, seed, EVALUATED):
            guesses = self.decoder.logits(self._hidden(batch.tokens)).argmax(-1)[:-1]
            learnt = batch.weights.flatten()[1:] > 0
            wrong = (guesses != batch.tokens.flatten()[1:]) & learnt
            sums = torch.tensor([1.0, float(not wrong.any()), float(wrong.sum()), float(learnt.sum())])
            kinds[kind] = kinds.get(kind, torch.zeros(4)) + sums
        for sums in kinds.values():
            dist.all_reduce(sums)
        if self.rank == 0:
            shown = {
                k: [round(float(s[1] / s[0]), 3), round(float(s[2] / s[3]), 5)] for k, s in kinds.items()
            }
            self._write({"held_out": shown, "tokens": self.progress.tokens})

    def _report(self, speed: float, average: list[float], norm: float, worst: float) -> None:
        at = self.progress
        self._write(
            {
                "share": round(at.share, 4),
                "step": at.step,
                "tokens": at.tokens,
                "tokens_per_second": round(speed),
                "loss": round(average[0], 4),
                "accuracy": round(average[1], 5),
                "norm": round(norm, 3),
                "rate": round(at.rate, 5),
                "worst_load": round(worst, 2),
                "minutes": round(at.seconds / 60, 1),
            }
        )

    def _write(self, figures: dict[str, Any]) -> None:
        line = json.dumps(figures)
        print(line, flush=True)
        with (self.work / "log.jsonl").open("a") as log:
            log.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("nano/work"))
    parser.add_argument("--tokens", type=float, default=30e6)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--save-seconds", type=float, default=240.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rank", type=int, default=-1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank < 0:
        _start_ranks(options.ranks)
        return
    torch.set_num_threads(1)
    rendezvous = (options.work / "rendezvous").resolve()
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=options.rank, world_size=options.ranks
    )
    Trainer(options).run()
    dist.destroy_process_group()


def _start_ranks(ranks: int) -> None:
    """This command again, once per rank; ends when all have."""
    work = Path(sys.argv[sys.argv.index("--work") + 1]) if "--work" in sys.argv else Path("nano/work")
    (work / "rendezvous").unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nano.train", *sys.argv[1:]]
    children = [subprocess.Popen([*command, "--rank", str(rank)], env=environment) for rank in range(ranks)]
    codes = [child.wait() for child in children]
    if any(codes):
        sys.exit(f"a rank ended with {codes}")


if __name__ == "__main__":
    main()
