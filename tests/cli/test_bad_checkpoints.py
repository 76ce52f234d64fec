"""Damaged checkpoints at the doors that users have: one line that names what is wrong, and no traceback."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perilune.cli.main import main
from perilune.model.headers import INDEX_NAME
from perilune.model.make import make_checkpoint
from perilune.model.shapes import SHAPES
from perilune.model.tiny import write_byte_tokenizer

ROOT = Path(__file__).parents[2]
NORM = "language_model.model.norm.weight"
SCALE = "language_model.model.layers.1.mlp.experts.5.gate_proj.weight_scale"
CHECKPOINT = 5


def shard_of(folder: Path, name: str) -> Path:
    return folder / str(json.loads((folder / INDEX_NAME).read_text())["weight_map"][name])


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def change_tensor(folder: Path, name: str, **fields: object) -> None:
    """Its entry in the head of its file; the head keeps its length."""
    path = shard_of(folder, name)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    head = json.loads(content[8 : 8 + length])
    head[name] |= fields
    text = json.dumps(head, separators=(",", ":")).encode()
    path.write_bytes(content[:8] + text.ljust(length) + content[8 + length :])


def truncate(path: Path, by: int) -> None:
    os.truncate(path, path.stat().st_size - by)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated shard": lambda folder: truncate(shard_of(folder, NORM), 10),
    "wrong type": lambda folder: change_tensor(folder, SCALE, dtype="F16"),
    "unknown type": lambda folder: change_tensor(folder, SCALE, dtype="C64"),
    "wrong shape": lambda folder: change_tensor(folder, NORM, shape=[2, 32]),
    "missing index entry": lambda folder: change_json(
        folder / INDEX_NAME, lambda index: index["weight_map"].pop(SCALE)
    ),
    "index is no JSON": lambda folder: truncate(folder / INDEX_NAME, 9),
    "shard is no shard": lambda folder: shard_of(folder, NORM).write_text("not found\n"),
    "another family": lambda folder: change_json(
        folder / "config.json", lambda config: config.update(model_type="llama")
    ),
    "contradictory fields": lambda folder: change_json(
        folder / "config.json", lambda config: config["text_config"].update(num_experts_per_tok=999)
    ),
    "unknown quantisation": lambda folder: change_json(
        folder / "config.json",
        lambda config: config["text_config"]["quantization_config"].update(quant_method="awq"),
    ),
    "config is no JSON": lambda folder: truncate(folder / "config.json", 9),
    "corrupt ranks": lambda folder: (folder / "tiktoken.model").write_bytes(b"\xff\0" * 999),
    "corrupt control tokens": lambda folder: (folder / "tokenizer_config.json").write_text("{"),
    "corrupt media rules": lambda folder: (folder / "preprocessor_config.json").write_text("[]"),
}

INSPECT: dict[str, tuple[str, ...]] = {
    "truncated shard": ("truncated", "is truncated: needs", ".safetensors"),
    "wrong type": ("1 dtype", SCALE, "stored as F16, readable are BF16", ".safetensors"),
    "unknown type": ("1 d", SCALE, "'C64'", "this build does not read"),
    "wrong shape": ("1 shape", NORM, "has [2, 32], config.json implies [64]", ".safetensors"),
    "missing index entry": ("1 missing", SCALE.removeprefix("language_model."), "1 index", INDEX_NAME),
    "index is no JSON": (INDEX_NAME, "not readable as JSON", "copy the file again"),
    "shard is no shard": ("1 damaged", "truncated or not safetensors", ".safetensors"),
    "another family": ("model_type: 'llama' is not a model", "use a checkpoint whose model_type is"),
    "contradictory fields": ("num_experts_per_tok: is 999 of n_routed_experts", "choose at most"),
    "unknown quantisation": (
        "quant_method: 'awq' is not supported",
        "compressed-tensors",
    ),
    "config is no JSON": ("config.json: not readable as JSON", "copy the file again"),
}
"""The others are no matter of tensors."""
SERVE: dict[str, tuple[str, ...]] = {
    "truncated shard": ("model-00002-of-000003.safetensors is truncated: needs", "copy the file again"),
    "missing index entry": (SCALE.removeprefix("language_model."), "missing from", "fetch it again"),
    "another family": INSPECT["another family"],
    "corrupt ranks": ("tiktoken.model: line 1 is not", "("),
    "corrupt control tokens": ("tokenizer_config.json: is not a tokenizer configuration", "("),
    "corrupt media rules": ("preprocessor_config.json: cannot be read", "copy the file again"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    make_checkpoint(
        SHAPES["tiny"](), folder, tokenizer=write_byte_tokenizer, hashes=False, shard_bytes=200_000
    )
    return folder


@pytest.fixture
def damaged(whole: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    DAMAGES[request.getfixturevalue("damage")](folder)
    return folder


@pytest.mark.parametrize("damage", INSPECT)
def test_inspect(damage: str, damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(damaged)]) == CHECKPOINT
    said = capsys.readouterr()
    assert said.err.startswith("perilune: ") and said.err.count("\n") == 1
    for words in INSPECT[damage]:
        assert words in said.err + said.out, said


@pytest.mark.parametrize("damage", SERVE)
def test_serve(damage: str, damaged: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "perilune", "serve", "--checkpoint", str(damaged), "--port", "0"]
    done = subprocess.run(
        [*command, "--home", str(tmp_path / "home")],
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == CHECKPOINT, done
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("perilune: ")]
    assert "Traceback" not in done.stderr and done.stdout == ""
    for words in SERVE[damage]:
        assert words in line, line
