"""Our engine and those of others, asked for the same greedy tokens.

Everything is computed in F32, each engine in its own order of summation. So two logits that are closer than
that order can tell apart may change places: a difference is explained where our own model is undecided
there, by less than LEAST_GAP, and unexplained otherwise.

`make peers` makes the others' environments and names them in PERILUNE_LLAMA and PERILUNE_VLLM.
"""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.clients.client_servers import Recorder

from perilune.agent.solo import run_agent
from perilune.agent.workspace import DirectoryWorkspace
from perilune.chat.messages import Request
from perilune.engine.client import EngineClient
from perilune.engine.protocol import EngineOptions, Seen, Vocabulary
from perilune.model.attention import CausalAttention
from perilune.model.load import load_model
from perilune.model.load_vision import load_vision
from perilune.model.shapes import TINY_VISION
from perilune.model.text import TextDecoder
from perilune.model.vision import Grid, Vision, normalised

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NANO = ROOT / "src" / "perilune" / "nano_checkpoint"
LLAMA_PYTHON = os.environ.get("PERILUNE_LLAMA", "")
VLLM_PYTHON = os.environ.get("PERILUNE_VLLM", "")
PATCH = TINY_VISION.patch_size
DRIFT = 1e-4
"""Most that a token's log-probability may differ; it was 3e-6 when this was written."""
LEAST_GAP = 2 * DRIFT
"""Two logits further apart than this are not a tie: each may have moved by DRIFT."""
K26_HEADS = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
NO_TEXT = Vocabulary(tokens=(), special_ids=(), eos_id=0)


@dataclass(frozen=True)
class Answer:
    tokens: list[int]
    sure: list[float]
    """The logarithm of each token's probability."""


PACKAGES = {"llama": "llama_cpp", "vllm": "vllm"}


@functools.cache
def missing(engine: str) -> str:
    """Why the peer cannot be asked; "" where it can."""
    path = Path({"llama": LLAMA_PYTHON, "vllm": VLLM_PYTHON}[engine])
    if not path.is_file():
        return f"no environment with {engine} is named: make peers"
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({PACKAGES[engine]!r}) is None)"
    if subprocess.run([path, "-c", look], check=False).returncode == 0:
        return ""
    log = path.parents[1] / "pip.log"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    why = [line for line in lines if "error" in line.lower()] or lines or ["pip left no log"]
    return f"{engine} could not be installed: {why[-1].strip()}"


def python_of(engine: str) -> str:
    """The interpreter of a peer's environment. Skips the test where it is not installed."""
    if why := missing(engine):
        pytest.skip(why)
    return {"llama": LLAMA_PYTHON, "vllm": VLLM_PYTHON}[engine]


def ask_peer(engine: str, program: str = "tokens", **inputs: Any) -> Any:
    """What the peer's program prints for these inputs."""
    done = subprocess.run(
        [python_of(engine), str(HERE / f"{engine}_{program}.py")],
        input=json.dumps(inputs),
        capture_output=True,
        text=True,
        timeout=900,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **PEER_ENVIRONMENT},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def of_vllm(
    copy: Path,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    stops: Sequence[int],
    *,
    latent: bool,
    context: int = 0,
    **inputs: Any,
) -> list[Answer]:
    """With `latent` its attention works on latents, for which its CPU code has one size: K2.6's own."""
    context = context or max(map(len, prompts)) + tokens + 1
    asked = {"prompts": prompts, "tokens": tokens, "stops": stops, "context": context, "latent": latent}
    return [Answer(**answer) for answer in ask_peer("vllm", model=str(copy), **asked, **inputs)["answers"]]


PEER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


async def our_tokens(
    folder: Path,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    stops: Sequence[int],
    media: Sequence[Sequence[Seen]] = (),
) -> list[list[int]]:
    """By the engine process, one prompt after the other; `media` is that of each prompt."""
    options = EngineOptions(checkpoint=str(folder), threads=1, cache_tokens=16384)
    client = await EngineClient.start(options, NO_TEXT)
    try:
        answers = []
        for prompt, shown in zip(prompts, media or [()] * len(prompts), strict=True):
            said: list[int] = []
            async for chunk in client.generate(prompt=prompt, max_tokens=tokens, stop_ids=stops, media=shown):
                said += chunk.token_ids
            answers.append(said)
        return answers
    finally:
        await client.close()


# ---- comparing


@dataclass(frozen=True)
class Difference:
    """Where two greedy answers part, seen with our logits."""

    prompt: int
    step: int
    ours: int
    theirs: int
    gap: float
    """By how much our model prefers its own token there: about nothing for a tie."""


@dataclass(frozen=True)
class Comparison:
    tokens: int
    """Compared, up to the first difference of each answer."""
    differences: tuple[Difference, ...]
    drift: float
    """The largest difference of a token's log-probability, where all tokens before were the same."""


def compare(
    folder: Path,
    prompts: Sequence[Sequence[int]],
    ours: Sequence[Sequence[int]],
    theirs: Sequence[Answer],
    media: Sequence[Sequence[Seen]] = (),
) -> Comparison:
    model = Model(load_model(folder), load_vision(folder) if media else None)
    tokens, drift, differences = 0, 0.0, []
    all_media = media or [()] * len(prompts)
    for number, (prompt, mine, other, shown) in enumerate(zip(prompts, ours, theirs, all_media, strict=True)):
        same = next(
            (at for at, pair in enumerate(zip(mine, other.tokens, strict=False)) if len(set(pair)) > 1), None
        )
        if same is None:
            assert len(mine) == len(other.tokens), (number, mine, other.tokens)
        end = len(mine) if same is None else same
        logits = model.logits([*prompt, *mine], shown)[len(prompt) - 1 :]
        likely = torch.log_softmax(logits.double(), dim=-1)
        tokens += end
        for step in range(end):
            drift = max(drift, abs(float(likely[step, mine[step]]) - other.sure[step]))
        if same is not None:
            gap = float(logits[same, mine[same]] - logits[same, other.tokens[same]])
            differences.append(Difference(number, same, mine[same], other.tokens[same], gap))
    return Comparison(tokens, tuple(differences), drift)


@dataclass(frozen=True)
class Model:
    decoder: TextDecoder
    vision: Vision | None

    def logits(self, tokens: Sequence[int], media: Sequence[Seen]) -> torch.Tensor:
        """[tokens, vocabulary], by the plain form of attention and the whole prompt at once."""
        ids = torch.tensor(tokens)
        attend = CausalAttention(1, len(ids))
        with torch.inference_mode():
            placed = self._placed(media) if media else None
            return self.decoder.logits(self.decoder(ids, torch.arange(len(ids)), attend, placed=placed))

    def _placed(self, media: Sequence[Seen]) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.vision
        rows, features = [], []
        for one in media:
            raw = torch.frombuffer(bytearray(one.patches), dtype=torch.uint8).view(-1, 3, PATCH, PATCH)
            features.append(self.vision(normalised(raw), Grid(*one.grid)))
            rows.append(torch.arange(one.start, one.start + len(features[-1])))
        return torch.cat(rows), torch.cat(features)


def agree(found: Comparison, tokens: int) -> None:
    print(f"{found.tokens} tokens, largest drift {found.drift:.1e}, {len(found.differences)} ties: {found}")
    assert found.tokens >= tokens
    assert found.drift < DRIFT
    unexplained = [one for one in found.differences if one.gap >= LEAST_GAP]
    assert not unexplained
    assert len(found.differences) <= 2


# ---- prompts

RENAMES = (
    ("total", "amount", "shop/cart.py", "import os\n\ntotal = 1\nprint(total)\n"),
    ("read_all", "load_rows", "a.py", "def read_all(path):\n    return path\n\n\nrows = read_all('x')\n"),
    (
        "Parser",
        "Reader",
        "src/lex/parse.py",
        "class Parser:\n    pass\n\n\nmade = [Parser() for _ in range(3)]\n",
    ),
    ("n", "count", "tests/test_n.py", "n = 0\nfor n in range(9):\n    print(n, 'n', n + 1)\n"),
    ("colour", "color", "paint.py", "# the colour\nself.colour = colour\n"),
    ("missing", "found", "empty.py", "pass\n"),
)


async def rename_requests(folder: Path) -> list[Request]:
    """All calls of a few little renames, first and later ones, as perilune-nano is asked them."""
    recorder = Recorder()
    for number, (old, new, path, text) in enumerate(RENAMES):
        file = folder / str(number) / path
        file.parent.mkdir(parents=True)
        file.write_text(text)
        workspace = DirectoryWorkspace(folder / str(number))
        await run_agent(recorder, "rename", f"Rename {old} to {new}.", path, workspace, model="scripted")
    return [request for request, _ in recorder.calls]


def random_prompts(vocabulary: int, many: int = 20, longest: int = 200) -> list[list[int]]:
    rng = random.Random("peers")
    return [[rng.randrange(vocabulary) for _ in range(rng.randint(1, longest))] for _ in range(many)]
