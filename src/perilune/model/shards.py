"""Writes safetensors shards and their index as a stream: no more than one tensor's piece is in memory.

The layout is known before the data, so a head is written first and the pieces follow in its order.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from perilune.errors import CheckpointError, StorageFull
from perilune.model.checkpoint import DTYPES
from perilune.model.headers import INDEX_NAME, ITEM_BYTES
from perilune.model.layout import TensorSpec

SHARD_BYTES = 10 * 1000**3
HEAD_ROOM = 64 * 1024 * 1024
"""Bytes to keep free besides the tensors: heads, index, config."""

Pieces = Callable[[TensorSpec], Iterable[Tensor]]
"""A tensor's data as consecutive pieces along its first dimension; their type is the spec's."""


def write_shards(folder: Path, specs: Sequence[TensorSpec], pieces: Pieces, *, shard_bytes: int) -> None:
    """Write `specs` (under the names they have) as shards of at most `shard_bytes`, then the index.

    A tensor is never divided over files. Raises StorageFull before anything is written when the disk
    lacks the room, and when it fills up meanwhile.
    """
    total = sum(spec.nbytes for spec in specs)
    _check_room(folder, total)
    shards = list(_divide(specs, shard_bytes))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):06d}.safetensors"
        try:
            _write_shard(folder / file, shard, pieces)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StorageFull(
                "no space left", field=str(folder / file), mend="free some space and start again"
            ) from error
        weight_map.update((spec.name, file) for spec in shard)
    write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _check_room(folder: Path, total: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < total + HEAD_ROOM:
        raise StorageFull(
            f"needs {total / 1e9:,.2f} GB, {free / 1e9:,.2f} GB are free",
            field=str(folder),
            mend="free some space, or choose another folder or a smaller shape",
        )


def _divide(specs: Sequence[TensorSpec], most: int) -> Iterable[list[TensorSpec]]:
    shard: list[TensorSpec] = []
    size = 0
    for spec in specs:
        if shard and size + spec.nbytes > most:
            yield _aligned(shard)
            shard, size = [], 0
        shard.append(spec)
        size += spec.nbytes
    if shard:
        yield _aligned(shard)


def _aligned(shard: list[TensorSpec]) -> list[TensorSpec]:
    """In the given order where every tensor ends at a multiple of 8 bytes; otherwise wide types first, so
    that every tensor begins at a multiple of its type's size."""
    if all(spec.nbytes % 8 == 0 for spec in shard):
        return shard
    return sorted(shard, key=lambda spec: -ITEM_BYTES[spec.dtype])


def _write_shard(path: Path, shard: Sequence[TensorSpec], pieces: Pieces) -> None:
    with path.open("wb") as file:
        file.write(_head(shard))
        for spec in shard:
            written = 0
            for piece in pieces(spec):
                data = _raw(piece, spec)
                file.write(data)
                written += len(data)
            if written != spec.nbytes:
                raise CheckpointError(
                    f"{written} bytes were given, {spec.nbytes} belong to {list(spec.shape)} {spec.dtype}",
                    field=spec.name,
                    mend="this is a fault of whoever gave them",
                )
        file.flush()
        os.fsync(file.fileno())


def _head(shard: Sequence[TensorSpec]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in shard:
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    # The data starts at a multiple of 8; spaces after the JSON are part of the format.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _raw(piece: Tensor, spec: TensorSpec) -> memoryview | bytes:
    if piece.dtype != DTYPES[spec.dtype]:
        raise CheckpointError(
            f"given as {piece.dtype}", field=spec.name, mend=f"it is to be stored as {spec.dtype}"
        )
    flat = piece.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
