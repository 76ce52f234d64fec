"""Checkpoint folders in the official layout, read in place.

The index comes first: one map from tensor name to (file, offset, type, shape), taken from the files'
headers alone (model/headers.py). `Checkpoint.get` then hands out tensors that are memory-mapped views of
the files.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from perilune.errors import CheckpointError
from perilune.model.headers import INDEX_NAME, TensorEntry, read_header, weight_map
from perilune.model.names import plain_name

__all__ = ["INDEX_NAME", "Checkpoint"]

RESIDENT_BYTES = 256 * 1024**2
"""What whoever reads on and on keeps of the pages read: the argument of `forget`."""

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


class Checkpoint:
    """The tensors of one folder, under their plain names (model/names.py), whichever way they are stored."""

    def __init__(self, folder: Path, entries: Mapping[str, TensorEntry]) -> None:
        self.folder = folder
        self.entries = entries
        self._maps: dict[Path, mmap.mmap] = {}
        self._handed_out = 0
        """Bytes handed out since `forget`: at most so many are resident."""

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the index and every header; no tensor data.

        Raises CheckpointError naming the file, the tensor and the mend.
        """
        files = weight_map(folder)
        headers = {file: read_header(folder / file) for file in dict.fromkeys(files.values())}
        entries: dict[str, TensorEntry] = {}
        for stored, file in files.items():
            if stored not in headers[file]:
                raise CheckpointError(
                    f"the index says it is in {file}, which does not have it",
                    field=stored,
                    mend="index and files are of different downloads: fetch all of them again",
                )
            name = plain_name(stored)
            if name in entries:
                raise CheckpointError(
                    f"stored twice, in {entries[name].file.name} and in {file} as {stored}",
                    field=name,
                    mend="keep one of the two",
                )
            entries[name] = headers[file][stored]
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

    def forget(self, above: int = 0) -> None:
        """Give back the memory of the pages read so far, once more than `above` bytes were handed out.

        Tensors handed out stay valid and are read again; what was written to them is lost.
        """
        if self._handed_out <= above:
            return
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)
        self._handed_out = 0

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
        self._handed_out += entry.nbytes
        raw = torch.frombuffer(
            self._maps[entry.file], dtype=torch.uint8, count=entry.nbytes, offset=entry.offset
        )
        if entry.offset % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype).view(entry.shape)


def _map_file(path: Path) -> mmap.mmap:
    # Private and writable, so that torch takes it; not reserved, so that a file larger than memory maps.
    with path.open("rb") as file:
        return mmap.mmap(
            file.fileno(),
            0,
            flags=mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0),
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
