"""The heads of safetensors files and the index over them: which tensor lies where. Imports no torch.

Source of the file format: safetensors (8-byte little-endian header length, JSON header, raw data).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perilune.errors import CheckpointError
from perilune.model.json_files import COPY_AGAIN, is_plain_name, parse_object, read_object

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100 * 1024 * 1024
"""The format's own limit; more is a damaged length."""
MAX_INDEX_BYTES = 256 * 1024 * 1024
"""K2.6's index has about 22 MB."""
MAX_DIMENSIONS = 8
MAX_EXTENT = 2**48

ITEM_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1},
}
"""Stored types that this build reads, and their size."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies; `offset` and `nbytes` are bytes from the start of the file."""

    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]


class TensorFault(CheckpointError):
    """One tensor of a file cannot be used."""

    def __init__(
        self, kind: Literal["damaged", "dtype", "truncated"], message: str, name: str, mend: str
    ) -> None:
        super().__init__(message, field=name, mend=mend)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Header:
    """What one file's head says. A tensor stands in `entries` or, when it is unusable, in `faults`."""

    entries: dict[str, TensorEntry]
    faults: dict[str, TensorFault]


def read_header(path: Path) -> dict[str, TensorEntry]:
    """One file's tensors, checked against its size.

    Raises CheckpointError naming the file (and tensor) when it is missing, truncated or not safetensors.
    """
    header = scan_header(path)
    for fault in header.faults.values():
        raise fault
    return header.entries


def scan_header(path: Path) -> Header:
    """As read_header, but goes on after an unusable tensor. Raises CheckpointError for the file alone."""
    document, data_start, size = _read_head(path)
    header = Header({}, {})
    for name, fields in document.items():
        if name == "__metadata__":
            continue
        try:
            header.entries[name] = _entry(path, name, fields, data_start, size)
        except TensorFault as fault:
            header.faults[name] = fault
    _find_overlaps(path, header)
    return header


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, from the index or, without one, from the single file.

    Raises CheckpointError naming the file and what is wrong.
    """
    index = folder / INDEX_NAME
    if not index.exists():
        if not (folder / SINGLE_NAME).exists():
            raise CheckpointError(
                f"has neither {INDEX_NAME} nor {SINGLE_NAME}",
                field=str(folder),
                mend="give the folder that holds the safetensors files",
            )
        header = scan_header(folder / SINGLE_NAME)
        return dict.fromkeys((*header.entries, *header.faults), SINGLE_NAME)
    names = read_object(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise CheckpointError(
            "has no readable weight_map of names to files", field=str(index), mend=COPY_AGAIN
        )
    for name, file in names.items():
        _check_file_name(name, file)
    return names


def index_total(folder: Path) -> int | None:
    """`metadata.total_size` of the index; None where there is none."""
    index = folder / INDEX_NAME
    if not index.exists():
        return None
    metadata = read_object(index, MAX_INDEX_BYTES).get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return total if isinstance(total, int) and not isinstance(total, bool) else None


def _check_file_name(name: str, file: str) -> None:
    """Nothing but a plain name of a file beside the index is opened."""
    if Path(file).name != file or "\\" in file:
        raise CheckpointError(
            f"{INDEX_NAME} points outside the folder: {file!r:.80}",
            field=name,
            mend="do not use this checkpoint",
        )
    if not file.endswith(".safetensors") or not file.isascii() or not is_plain_name(file):
        raise CheckpointError(
            f"{INDEX_NAME} says it is in {file!r:.80}, which is not the name of a safetensors file",
            field=name,
            mend=COPY_AGAIN,
        )


def _read_head(path: Path) -> tuple[dict[str, Any], int, int]:
    """The JSON header, where the data starts, and the file's size."""
    if not path.is_file():
        raise CheckpointError("file not found", field=str(path), mend="fetch the missing file")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else MAX_HEADER_BYTES + 1
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(
                    f"truncated or not safetensors ({size} bytes)", field=str(path), mend=COPY_AGAIN
                )
            content = file.read(length)
    except OSError as error:
        raise CheckpointError(f"header not readable: {error}", field=str(path), mend=COPY_AGAIN) from error
    return parse_object(content, path), 8 + length, size


def _entry(path: Path, name: str, fields: Any, data_start: int, size: int) -> TensorEntry:
    def fault(
        problem: str, kind: Literal["damaged", "dtype", "truncated"] = "damaged", mend: str = COPY_AGAIN
    ) -> TensorFault:
        return TensorFault(kind, problem, name, mend)

    try:
        dtype, shape, (begin, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise fault(f"{path.name} describes it wrongly") from error
    counts = (*shape, begin, end)
    sound = len(shape) <= MAX_DIMENSIONS and all(type(n) is int and 0 <= n <= MAX_EXTENT for n in counts)
    if not sound or not isinstance(dtype, str):
        raise fault(f"{path.name} describes it wrongly")
    if dtype not in ITEM_BYTES:
        raise fault(
            f"stored as {dtype[:40]!r} in {path.name}, which this build does not read",
            "dtype",
            f"use a checkpoint stored as one of {', '.join(ITEM_BYTES)}",
        )
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise fault(f"{path.name} gives it {end - begin} bytes, not those of {list(shape)} {dtype}")
    if data_start + end > size:
        raise fault(f"{path.name} is truncated: needs {data_start + end} bytes, has {size}", "truncated")
    return TensorEntry(path, data_start + begin, end - begin, dtype, shape)


def _find_overlaps(path: Path, header: Header) -> None:
    """Move tensors that share bytes with an earlier one to the faults."""
    reached = 0
    for name, entry in sorted(header.entries.items(), key=lambda item: item[1].offset):
        if entry.nbytes and entry.offset < reached:
            del header.entries[name]
            header.faults[name] = TensorFault(
                "damaged", f"{path.name} lays it over another tensor", name, COPY_AGAIN
            )
        reached = max(reached, entry.offset + entry.nbytes)
