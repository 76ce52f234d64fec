"""A checkpoint copied with its routed experts stored as INT4 or as BF16, under the official names.

INT4 -> BF16 is exact. BF16 -> INT4 rounds, except for weights that were INT4 before: those come back bit for
bit (model/int4.py, requantise).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from perilune.errors import CheckpointError
from perilune.model.checkpoint import RESIDENT_BYTES, Checkpoint
from perilune.model.config import CONFIG_NAME, TextConfig, parse_config, read_config
from perilune.model.content_hash import LIST_NAME, content_hash, write_list
from perilune.model.headers import INDEX_NAME
from perilune.model.inspection import inspect
from perilune.model.int4 import pack, requantise
from perilune.model.json_files import read_object
from perilune.model.layout import PACKED_SUFFIXES, TensorSpec, all_tensors
from perilune.model.make import new_folder, stored_specs, with_experts
from perilune.model.mapped_experts import expert_matrix
from perilune.model.names import plain_name
from perilune.model.shards import SHARD_BYTES, write_json, write_shards
from perilune.model.vision_config import parse_vision

ENTRY_NAME = "perilune.json"
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def convert(
    source: Path, folder: Path, experts: Literal["int4", "bf16"], *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `source` to the new folder `folder` with experts stored as `experts`; other files are copied.

    Raises CheckpointError when the source is not whole, InputError for the folder, StorageFull.
    """
    _check_whole(source)
    document = with_experts(read_config(source), experts)
    config, old = parse_config(document), parse_config(read_config(source))
    checkpoint = Checkpoint.open(source)
    new_folder(folder)
    specs = [
        _as_kept(spec, checkpoint)
        for spec in stored_specs(all_tensors(config, parse_vision(document, config)), document)
    ]
    write_json(folder / CONFIG_NAME, document)
    write_shards(folder, specs, _Pieces(checkpoint, old, config), shard_bytes=shard_bytes)
    _copy_others(source, folder)
    write_list(folder)


def _check_whole(source: Path) -> None:
    seen = inspect(source)
    if seen.source != "files":
        raise CheckpointError(
            "holds no safetensors files", field=str(source), mend="fetch them beside the config"
        )
    for problem in seen.problems:
        if problem.kind != "extra":
            raise CheckpointError(
                problem.detail, field=problem.name, mend="perilune inspect lists all that is wrong"
            )


def _as_kept(spec: TensorSpec, checkpoint: Checkpoint) -> TensorSpec:
    """With the type it is stored in, where the tensor is copied as it is."""
    entry = checkpoint.entries.get(plain_name(spec.name))
    return TensorSpec(spec.name, spec.shape, entry.dtype) if entry else spec


class _Pieces:
    """Hands out the new checkpoint's tensors, one matrix in memory at a time."""

    def __init__(self, checkpoint: Checkpoint, old: TextConfig, new: TextConfig) -> None:
        self._checkpoint = checkpoint
        self._old = old
        self._new = new
        self._packed: tuple[str, Tensor, Tensor] | None = None
        """The matrix packed last: its scale is asked for next."""

    def __call__(self, spec: TensorSpec) -> Iterable[Tensor]:
        self._checkpoint.forget(RESIDENT_BYTES)
        name = plain_name(spec.name)
        if name in self._checkpoint:
            return _rows(self._checkpoint.get(name, spec.shape))
        matrix = name.rpartition(".")[0]
        if not name.endswith(PACKED_SUFFIXES):
            return (self._matrix(matrix).to(torch.bfloat16),)
        if name.endswith("weight_shape"):
            return (torch.tensor(self._matrix(matrix).shape, dtype=torch.int32),)
        if self._packed is None or self._packed[0] != matrix:
            assert self._new.quantization, "packed tensors are asked for by a packed config only"
            values, scale = requantise(self._matrix(matrix), self._new.quantization.group_size)
            self._packed = (matrix, pack(values), scale)
        return (self._packed[1] if name.endswith("weight_packed") else self._packed[2],)

    def _matrix(self, name: str) -> Tensor:
        prefix, _, part = name.rpartition(".")
        return expert_matrix(self._checkpoint, self._old, f"{prefix}.", part)


def _rows(tensor: Tensor) -> Iterator[Tensor]:
    """A mapped tensor by a few rows at a time, so that little of it is resident."""
    if not tensor.dim():
        yield tensor
        return
    step = max(1, RESIDENT_BYTES * len(tensor) // max(1, tensor.nbytes))
    for start in range(0, len(tensor), step):
        yield tensor[start : start + step]


def _copy_others(source: Path, folder: Path) -> None:
    """Tokenizer, template, licence and the like; a model entry is told its new content."""
    for path in sorted(source.iterdir()):
        own = path.name in (CONFIG_NAME, INDEX_NAME, LIST_NAME)
        if path.is_file() and not own and path.suffix not in WEIGHT_FILES:
            shutil.copyfile(path, folder / path.name)
    entry = folder / ENTRY_NAME
    if entry.is_file():
        document = read_object(entry, 1024**2)
        write_json(entry, document | {"content_hash": content_hash(folder)})
