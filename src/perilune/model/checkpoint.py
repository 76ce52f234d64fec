"""Checkpoint folders in the official layout, read in place.

The index comes first: one map from tensor name to (file, offset, type, shape), taken from the files'
headers alone. `Checkpoint.get` then hands out tensors that are memory-mapped views of the files.
Source of the file format: safetensors (8-byte little-endian header length, JSON header, raw data).
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perilune.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PREFIX = "language_model."
MAX_HEADER_BYTES = 100 * 1024 * 1024
"""The format's own limit; more is a damaged length."""
COPY_AGAIN = "copy the file again from its source"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies; `offset` and `nbytes` are bytes from the start of the file."""

    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """The tensors of one folder. Names are without `language_model.`, whichever way they are stored."""

    def __init__(self, folder: Path, entries: Mapping[str, TensorEntry]) -> None:
        self.folder = folder
        self.entries = entries
        self._maps: dict[Path, mmap.mmap] = {}

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the index and every header; no tensor data.

        Raises CheckpointError naming the file, the tensor and the mend.
        """
        names = _weight_map(folder)
        headers = {file: read_header(folder / file) for file in dict.fromkeys(names.values())}
        entries = {}
        for name, file in names.items():
            if name not in headers[file]:
                raise CheckpointError(
                    f"the index says it is in {file}, which does not have it",
                    field=name,
                    mend="index and files are of different downloads: fetch all of them again",
                )
            entries[name.removeprefix(PREFIX)] = headers[file][name]
        return cls(folder, entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def get(self, name: str, shape: tuple[int, ...] | None = None, dtypes: tuple[str, ...] = ()) -> Tensor:
        """The tensor, mapped from its file. Writing to it changes memory, never the file.

        Raises CheckpointError when it is missing, or is not of the given shape and one of the dtypes.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise CheckpointError(
                f"missing from {self.folder}", field=name, mend="the checkpoint is incomplete: fetch it again"
            )
        if shape is not None and entry.shape != shape:
            raise self._differs(name, entry, f"has shape {list(entry.shape)}, config.json says {list(shape)}")
        if dtypes and entry.dtype not in dtypes:
            raise self._differs(name, entry, f"is stored as {entry.dtype}, readable are {', '.join(dtypes)}")
        return self._mapped(entry)

    def _differs(self, name: str, entry: TensorEntry, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{problem} (in {entry.file.name})",
            field=name,
            mend="use the config.json that came with the files",
        )

    def _mapped(self, entry: TensorEntry) -> Tensor:
        dtype = DTYPES[entry.dtype]
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=dtype)
        if entry.file not in self._maps:
            self._maps[entry.file] = _map_file(entry.file)
        raw = torch.frombuffer(
            self._maps[entry.file], dtype=torch.uint8, count=entry.nbytes, offset=entry.offset
        )
        if entry.offset % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype).view(entry.shape)


def read_header(path: Path) -> dict[str, TensorEntry]:
    """One safetensors file's tensors, checked against the file's size.

    Raises CheckpointError naming the file (and tensor) when it is missing, truncated or not safetensors.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else MAX_HEADER_BYTES + 1
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(
                    f"truncated or not safetensors ({size} bytes)", field=str(path), mend=COPY_AGAIN
                )
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise CheckpointError("file not found", field=str(path), mend="fetch the missing file") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"header not readable: {error}", field=str(path), mend=COPY_AGAIN) from error
    if not isinstance(header, dict):
        raise CheckpointError("header is not a JSON object", field=str(path), mend=COPY_AGAIN)
    return {
        name: _entry(path, name, fields, 8 + length, size)
        for name, fields in header.items()
        if name != "__metadata__"
    }


def _entry(path: Path, name: str, fields: Any, data_start: int, size: int) -> TensorEntry:
    try:
        dtype, shape = fields["dtype"], tuple(int(extent) for extent in fields["shape"])
        begin, end = (int(offset) for offset in fields["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name} describes it wrongly", field=name, mend=COPY_AGAIN) from error
    if dtype not in DTYPES:
        raise CheckpointError(
            f"stored as {dtype} in {path.name}, which this build does not read",
            field=name,
            mend=f"use a checkpoint stored as one of {', '.join(DTYPES)}",
        )
    if begin < 0 or end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise CheckpointError(
            f"{path.name} gives it {end - begin} bytes, not those of {list(shape)} {dtype}",
            field=name,
            mend=COPY_AGAIN,
        )
    if data_start + end > size:
        raise CheckpointError(
            f"{path.name} is truncated: needs {data_start + end} bytes, has {size}",
            field=name,
            mend=COPY_AGAIN,
        )
    return TensorEntry(path, data_start + begin, end - begin, dtype, shape)


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, from the index or, without one, from the single file."""
    index = folder / INDEX_NAME
    if not index.exists():
        if not (folder / SINGLE_NAME).exists():
            raise CheckpointError(
                f"has neither {INDEX_NAME} nor {SINGLE_NAME}",
                field=str(folder),
                mend="give the folder that holds the safetensors files",
            )
        return dict.fromkeys(read_header(folder / SINGLE_NAME), SINGLE_NAME)
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("has no readable weight_map", field=str(index), mend=COPY_AGAIN) from error
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise CheckpointError("weight_map must map names to files", field=str(index), mend=COPY_AGAIN)
    for name, file in names.items():
        if Path(file).name != file:
            raise CheckpointError(
                f"{index.name} points outside the folder: {file}",
                field=name,
                mend="do not use this checkpoint",
            )
    return names


def _map_file(path: Path) -> mmap.mmap:
    # Private and writable, so that torch takes it; not reserved, so that a file larger than memory maps.
    with path.open("rb") as file:
        return mmap.mmap(
            file.fileno(),
            0,
            flags=mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0),
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
