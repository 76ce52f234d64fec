"""A checkpoint read from end to end: its hashes, its values, its index against its files.

What reading the heads alone can tell is in model/inspection.py, and is part of this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from perilune.errors import CheckpointError
from perilune.model.checkpoint import RESIDENT_BYTES, Checkpoint
from perilune.model.config import TextConfig
from perilune.model.content_hash import LIST_NAME, read_list
from perilune.model.headers import TensorEntry
from perilune.model.inspection import Inspection, inspect
from perilune.model.layout import expert_shapes
from perilune.model.names import is_computed

PIECE_BYTES = 64 * 1024**2
FLOATS = ("BF16", "F16", "F32", "F64")


@dataclass(frozen=True)
class Fault:
    """`name` is a tensor or a file."""

    name: str
    detail: str


@dataclass(frozen=True)
class Verification:
    seen: Inspection
    faults: tuple[Fault, ...]
    """Everything wrong, what inspection finds included."""
    hashed: int
    """Files compared with the list of hashes; 0 where the folder has none."""
    checked: int
    """Tensors whose values were read."""


def verify(folder: Path, told: Callable[[str], None] = lambda _: None) -> Verification:
    """Read all of `folder`; `told` hears which file is being read. Memory stays at a few pieces.

    Raises CheckpointError when there are no files to verify.
    """
    seen = inspect(folder)
    if seen.source != "files":
        raise CheckpointError(
            "holds no safetensors files", field=str(folder), mend="perilune inspect describes a config alone"
        )
    faults = [Fault(problem.name, f"{problem.kind}: {problem.detail}") for problem in seen.problems]
    hashed = 0
    for path, digest in read_list(folder).items():
        told(path)
        hashed += 1
        faults.extend(_hash_faults(folder, path, digest))
    checked = 0
    if not any(problem.kind != "extra" for problem in seen.problems):
        told("values")
        for _, wrong in _read_values(folder, seen.config):
            checked += 1
            faults.extend(wrong)
    return Verification(seen, tuple(faults), hashed, checked)


def _read_values(folder: Path, config: TextConfig) -> Iterator[tuple[str, list[Fault]]]:
    """Every tensor whose values can be wrong in themselves, and what is wrong with them."""
    checkpoint = Checkpoint.open(folder)
    for name, entry in checkpoint.entries.items():
        if is_computed(name) or not (entry.dtype in FLOATS or name.endswith("weight_shape")):
            continue
        yield name, list(_value_faults(checkpoint, name, entry, config))
        checkpoint.forget(RESIDENT_BYTES)


def _hash_faults(folder: Path, name: str, digest: str) -> Iterator[Fault]:
    path = folder / name
    if not path.is_file():
        yield Fault(name, f"listed in {LIST_NAME} but not there")
        return
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            yield Fault(name, f"does not match {LIST_NAME}: damaged or changed")


def _value_faults(
    checkpoint: Checkpoint, name: str, entry: TensorEntry, config: TextConfig
) -> Iterator[Fault]:
    if name.endswith("weight_shape"):
        matrix = name.removesuffix(".weight_shape").rpartition(".")[2]
        implied = expert_shapes(config).get(matrix)
        # Others are extra tensors, whatever their name: inspection has told of them.
        if implied and entry.shape == (2,) and (said := checkpoint.get(name).tolist()) != list(implied):
            yield Fault(name, f"says {said}, config.json implies {list(implied)}")
    elif entry.dtype in FLOATS:
        bad = sum(int((~torch.isfinite(piece)).sum()) for piece in _pieces(checkpoint, name, entry))
        if bad:
            yield Fault(name, f"{bad:,} of its values are NaN or infinite (in {entry.file.name})")


def _pieces(checkpoint: Checkpoint, name: str, entry: TensorEntry) -> Iterator[Tensor]:
    tensor = checkpoint.get(name).flatten()
    step = PIECE_BYTES // tensor.element_size()
    for start in range(0, tensor.numel(), step):
        yield tensor[start : start + step]
