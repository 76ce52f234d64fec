"""Random checkpoints of any shape in the official layout, for people who test engines.

Every tensor depends on the seed and its name alone, so the same seed gives the same bytes in any sharding.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perilune.errors import InputError
from perilune.model.config import CONFIG_NAME, TextConfig, parse_config
from perilune.model.config import WRAPPED_TYPES as WRAPPED
from perilune.model.content_hash import write_list
from perilune.model.layout import TensorSpec, all_tensors, expert_shapes
from perilune.model.names import official_name, plain_name
from perilune.model.shards import SHARD_BYTES, write_json, write_shards
from perilune.model.vision_config import parse_vision
from perilune.model.writer import quantization_document

PIECE = 8 * 1024**2
"""Elements of a tensor that are made at once."""
NIBBLE_SPREAD = 4.61
"""Standard deviation of the whole numbers -8..7, which random packed weights are spread over evenly."""
TOKENIZER_FILES = ("tiktoken.model", "tokenizer_config.json")


def make_checkpoint(
    document: Mapping[str, Any],
    folder: Path,
    *,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    tokenizer: Callable[[Path], None] | None = None,
    hashes: bool = True,
) -> None:
    """Fill `folder`, which must be new or empty, with random weights for the config.json `document`.

    `tokenizer` puts the tokenizer's files there; without `hashes` there will be no list of hashes.

    Raises CheckpointError for a config that cannot be, InputError for the folder, StorageFull.
    """
    config = parse_config(document)
    vision = parse_vision(document, config)
    new_folder(folder)
    specs = stored_specs(all_tensors(config, vision), document)
    write_json(folder / CONFIG_NAME, document)
    write_shards(folder, specs, lambda spec: random_pieces(spec, config, seed), shard_bytes=shard_bytes)
    if tokenizer:
        tokenizer(folder)
    if hashes:
        write_list(folder)


def new_folder(folder: Path) -> None:
    """Make `folder`, or find it empty. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        filled = any(folder.iterdir())
    except OSError as error:
        raise InputError(
            f"cannot be made: {error.strerror}", field=str(folder), mend="choose another folder"
        ) from error
    if filled:
        raise InputError("is not empty", field=str(folder), mend="choose a new folder, or empty this one")


def copy_tokenizer(source: Path, folder: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def stored_specs(specs: Iterator[TensorSpec], document: Mapping[str, Any]) -> list[TensorSpec]:
    """Specs under the names that this kind of config.json goes with."""
    if document["model_type"] not in WRAPPED:
        return list(specs)
    return [TensorSpec(official_name(spec.name), spec.shape, spec.dtype) for spec in specs]


def with_experts(document: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """`document` with its routed experts stored as `int4` (as it says, or by 32) or `bf16`."""
    changed = {name: value for name, value in document.items() if name != "quantization_config"}
    inner = "text_config" if changed["model_type"] in WRAPPED else None
    text = dict(changed[inner]) if inner else changed
    text.pop("quantization_config", None)
    if kind == "int4":
        packing = parse_config(document).quantization
        text["quantization_config"] = quantization_document(packing)
    if inner:
        changed[inner] = text
    return changed


def random_pieces(spec: TensorSpec, config: TextConfig, seed: int) -> Iterator[Tensor]:
    """The tensor's data, a few rows at a time."""
    key = hashlib.sha256(f"{seed} {plain_name(spec.name)}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
    if spec.name.endswith("weight_shape"):
        part = spec.name.split(".")[-2]
        yield torch.tensor(expert_shapes(config)[part], dtype=torch.int32)
        return
    row = math.prod(spec.shape[1:])
    step = max(1, PIECE // max(1, row))
    for start in range(0, spec.shape[0], step):
        count = min(step, spec.shape[0] - start) * row
        yield _random(spec, count, config, generator)


def _random(spec: TensorSpec, count: int, config: TextConfig, generator: torch.Generator) -> Tensor:
    if spec.name.endswith("weight_packed"):
        pairs = torch.empty((count + 1) // 2, dtype=torch.int64).random_(-(2**63), None, generator=generator)
        return pairs.view(torch.int32)[:count]
    if spec.name.endswith("e_score_correction_bias"):
        return torch.empty(count).normal_(std=0.1, generator=generator)
    values = torch.empty(count, dtype=torch.bfloat16)
    if spec.name.endswith("weight_scale"):
        usual = config.initializer_range / NIBBLE_SPREAD
        return values.uniform_(0.5 * usual, 1.5 * usual, generator=generator)
    if "norm" in spec.name and spec.name.endswith("weight"):
        return values.uniform_(0.5, 1.5, generator=generator)
    return values.normal_(std=config.initializer_range, generator=generator)
