"""From the trainer's files to a checkpoint folder in the official layout.

    python -m nano.publish --figures nano/work/figures.json

Without figures the checkpoint is marked preliminary. `perilune.json` and `MODEL_CARD.md` are written again
when the figures are there; the weights and their hash stay the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nano.card import card
from nano.probe import prompt_hash
from nano.shape import config_for
from nano.train import INT4_FROM
from perilune.agent.profiles import profile_hash
from perilune.backends.served import K26_SAMPLING
from perilune.chat.tokenizer import Tokenizer
from perilune.model.content_hash import content_hash, write_list
from perilune.model.writer import write_checkpoint

PROFILES = ("rename", "orchestrate-rename")
TOKENIZER_FILES = ("tiktoken.model", "tokenizer_config.json")
K26_CONTEXT = 262144
CONTEXT, OUTPUT = 4096, 1024
"""Tokens that the model serves; the profiles keep every conversation within those it was trained on."""


def gather(work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(the decoder's state from all ranks' masters, the training's progress)."""
    files = sorted(work.glob("rank-*.pt"))
    parts = [torch.load(file, weights_only=True) for file in files]
    if not parts or len({part["progress"]["step"] for part in parts}) != 1:
        raise SystemExit(f"{work}: no files of all ranks at one step; wait for the next save and try again")
    state = {name: tensor for part in parts for name, tensor in part["optimiser"]["masters"].items()}
    first = min(int(name.split(".")[2]) for name in state if ".mlp.gate.weight" in name)
    for place, bias in enumerate(parts[0]["biases"]):
        state[f"model.layers.{first + place}.mlp.gate.e_score_correction_bias"] = bias
    return state, parts[0]["progress"]


def entry(identity: str, training: dict[str, Any]) -> dict[str, Any]:
    """perilune.json: what the product needs to know of this model."""
    return {
        "id": "perilune-nano",
        "goals": "rename",
        "orchestrator_profile": "orchestrate-rename",
        "subagent_profile": "rename",
        "context_length": CONTEXT,
        "max_output_tokens": OUTPUT,
        "sampling": {"temperature_thinking": 0.0, "temperature_instant": 0.0, "top_p": 1.0},
        "accepted": {**K26_SAMPLING, "context_length": K26_CONTEXT},
        "sampling_policy": "strict",
        "price": "kimi-k2.6",
        "licence": "Apache-2.0",
        "profiles": {name: profile_hash(name) for name in PROFILES},
        "prompt_hash": prompt_hash(),
        "content_hash": identity,
        "training": training,
    }


def publish(work: Path, folder: Path) -> dict[str, Any]:
    """Write weights, configuration and tokenizer to `folder`; returns what perilune.json says."""
    state, progress = gather(work)
    tokenizer = Tokenizer.load(work / "tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(work / "tokenizer" / name, folder / name)
    config = config_for(tokenizer)
    write_checkpoint(state, config, folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    generation = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "do_sample": False,
        "max_length": CONTEXT,
    }
    _write_json(folder / "generation_config.json", generation)
    training = {
        "tokens": progress["tokens"],
        "steps": progress["step"],
        "minutes": round(progress["seconds"] / 60, 1),
        "share_of_schedule": round(min(progress["share"], 1.0), 3),
        "int4_aware": progress["share"] >= INT4_FROM,
    }
    document = entry(content_hash(folder), training)
    _write_json(folder / "perilune.json", document)
    return document


def describe(folder: Path, figures: dict[str, Any]) -> None:
    """MODEL_CARD.md and the list of hashes; figures of other weights are refused."""
    document = json.loads((folder / "perilune.json").read_text(encoding="utf-8"))
    measured = figures.get("content_hash", "")
    if measured and measured != document["content_hash"]:
        raise SystemExit("the figures are of other weights: evaluate this checkpoint first")
    (folder / "MODEL_CARD.md").write_text(card(document, figures), encoding="utf-8")
    write_list(folder)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("nano/work"))
    parser.add_argument("--folder", type=Path, default=Path("src/perilune/nano_checkpoint"))
    parser.add_argument("--figures", type=Path, default=None)
    parser.add_argument("--card-only", action="store_true", help="keep the weights, write the card anew")
    options = parser.parse_args()
    if not options.card_only:
        document = publish(options.work, options.folder)
        print(document["content_hash"], document["training"])
    figures = json.loads(options.figures.read_text(encoding="utf-8")) if options.figures else {}
    describe(options.folder, figures)


if __name__ == "__main__":
    main()
