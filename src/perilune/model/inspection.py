"""What a checkpoint is and whether it is whole, from its JSON and its files' heads. Imports no torch.

Three depths, by what is there: the files' heads, the index alone, or config.json alone, whose implied
layout is then described.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from perilune.errors import CheckpointError
from perilune.model.config import CONFIG_NAME, TextConfig, parse_config, read_config
from perilune.model.headers import (
    INDEX_NAME,
    SINGLE_NAME,
    Header,
    TensorEntry,
    index_total,
    scan_header,
    weight_map,
)
from perilune.model.layout import (
    PACKED_SUFFIXES,
    TensorSpec,
    active_parameters,
    all_tensors,
    text_parameters,
    vision_tensors,
)
from perilune.model.names import is_computed, plain_name
from perilune.model.vision_config import VisionConfig, parse_vision

Kind = Literal["missing", "extra", "shape", "dtype", "truncated", "damaged", "index"]
FLOATS = ("BF16", "F16", "F32")
CACHE_ITEM_BYTES = 2
"""The latent cache in BF16."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as config.json says; `name` is a tensor (as stored where it is) or a file."""

    kind: Kind
    name: str
    detail: str


@dataclass(slots=True)
class Part:
    """A share of the model, such as its routed experts."""

    tensors: int = 0
    parameters: int = 0
    nbytes: int = 0


@dataclass(frozen=True)
class Inspection:
    """All that `perilune inspect` says. Byte counts are of tensor data, without the files' heads."""

    path: Path
    source: Literal["files", "index", "config"]
    model_type: str
    config: TextConfig
    vision: VisionConfig | None
    parts: Mapping[str, Part]
    tensors: int
    nbytes: int
    parameters: int
    active_parameters: int
    problems: tuple[Problem, ...] = ()

    @property
    def cache_bytes_per_token(self) -> int:
        return self.config.latent_width * self.config.num_hidden_layers * CACHE_ITEM_BYTES

    @property
    def cache_bytes(self) -> int:
        """At full context."""
        return self.cache_bytes_per_token * self.config.max_position_embeddings

    @property
    def experts_stored(self) -> str:
        packing = self.config.quantization
        return f"INT4, one scale per {packing.group_size}" if packing else "BF16"


def inspect(path: Path) -> Inspection:
    """`path` is a folder, its index, or a config.json, which is then taken alone.

    Raises CheckpointError when there is no usable config.json or index; whatever is wrong with tensors
    is in `problems` instead.
    """
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and path.name != INDEX_NAME and path.suffix != ".json":
        raise CheckpointError(
            "is not a checkpoint" if path.exists() else "not found",
            field=str(path),
            mend="give a folder, its config.json or its index",
        )
    config_name = CONFIG_NAME if path.is_dir() or path.name == INDEX_NAME else path.name
    document = read_config(folder, config_name)
    config = parse_config(document)
    vision = parse_vision(document, config)
    source = _source(path)
    found = _Found(folder, source)
    stored = found.read() if source != "config" else {}
    parts, tensors, nbytes = _walk(config, vision, stored, found, source)
    text = text_parameters(config)
    seen = sum(spec.parameters for spec in vision_tensors(vision)) if vision else 0
    return Inspection(
        path,
        source,
        str(document["model_type"]),
        config,
        vision,
        parts,
        tensors,
        nbytes,
        text + seen,
        active_parameters(config),
        tuple(found.problems),
    )


def _source(path: Path) -> Literal["files", "index", "config"]:
    if path.name == INDEX_NAME:
        return "index"
    if not path.is_dir():
        return "config"
    if (path / SINGLE_NAME).exists() or any(path.glob("*.safetensors")):
        return "files"
    return "index" if (path / INDEX_NAME).exists() else "config"


@dataclass(slots=True)
class _Stored:
    """One tensor that index or files name; `entry` is None where no head was read or it is unusable."""

    name: str
    entry: TensorEntry | None = None
    gone: bool = False
    """Its problem is told already."""


@dataclass
class _Found:
    """What lies in the folder, and what is wrong with it."""

    folder: Path
    source: str
    problems: list[Problem] = field(default_factory=list)

    def add(self, kind: Kind, name: str, detail: str) -> None:
        self.problems.append(Problem(kind, name, detail))

    def read(self) -> dict[str, _Stored]:
        """Every stored tensor by its plain name."""
        files = weight_map(self.folder)
        headers = self._headers(files.values()) if self.source == "files" else {}
        stored: dict[str, _Stored] = {}
        for name, file in files.items():
            plain = plain_name(name)
            if plain in stored:
                self.add("extra", name, f"stored a second time, in {file}")
                continue
            stored[plain] = self._stored(name, file, headers)
        for file, header in headers.items():
            for name in header.entries.keys() - files.keys() if header else ():
                self.add("index", name, f"in {file}, but not in {INDEX_NAME}")
        if self.source == "files":
            for extra in sorted({path.name for path in self.folder.glob("*.safetensors")} - headers.keys()):
                self.add("extra", extra, f"a file that {INDEX_NAME} does not name")
        return stored

    def _headers(self, files: Iterable[str]) -> dict[str, Header | None]:
        """File -> its head; None for a file that is missing or unreadable."""
        headers: dict[str, Header | None] = {}
        for file in sorted(set(files)):
            try:
                headers[file] = scan_header(self.folder / file)
            except CheckpointError as error:
                headers[file] = None
                there = (self.folder / file).is_file()
                self.add("damaged" if there else "missing", file, error.message)
        return headers

    def _stored(self, name: str, file: str, headers: Mapping[str, Header | None]) -> _Stored:
        if self.source != "files":
            return _Stored(name)
        header = headers[file]
        if header is None:
            self.add("missing", name, f"its file {file} is missing or unreadable")
        elif name in header.entries:
            return _Stored(name, header.entries[name])
        elif fault := header.faults.get(name):
            self.add(fault.kind, name, fault.message)
        else:
            self.add("missing", name, f"the index says it is in {file}, which does not have it")
        return _Stored(name, gone=True)


def _walk(
    config: TextConfig, vision: VisionConfig | None, stored: dict[str, _Stored], found: _Found, source: str
) -> tuple[dict[str, Part], int, int]:
    """Compare what is stored with the layout; parts, tensors and bytes of what is there."""
    parts: dict[str, Part] = {}
    tensors = nbytes = implied = 0
    rest = dict(stored)
    for want in all_tensors(config, vision):
        for spec in _as_stored(want, config, stored) if source != "config" else (want,):
            implied += spec.nbytes
            have = rest.pop(spec.name, None)
            if source != "config" and have is None:
                found.add("missing", spec.name, "config.json implies it")
                continue
            if have is not None and have.entry is not None:
                _compare(have.name, have.entry, spec, found)
            size = have.entry.nbytes if have is not None and have.entry else spec.nbytes
            if have is None or not have.gone:
                part = parts.setdefault(_part(spec.name), Part())
                part.tensors, part.nbytes = part.tensors + 1, part.nbytes + size
                part.parameters += spec.parameters
                tensors, nbytes = tensors + 1, nbytes + size
    for plain, have in rest.items():
        if not is_computed(plain) and not have.gone:
            found.add("extra", have.name, "config.json does not imply it")
    if source == "index" and not found.problems:
        _compare_total(index_total(found.folder), implied, config, found)
    return parts, tensors, nbytes


def _as_stored(want: TensorSpec, config: TextConfig, stored: Mapping[str, _Stored]) -> tuple[TensorSpec, ...]:
    """`want`, or what stands for it where single experts of a packed checkpoint are stored as BF16."""
    if not want.name.endswith(PACKED_SUFFIXES):
        return (want,)
    matrix, _, last = want.name.rpartition(".")
    if want.name in stored or f"{matrix}.weight" not in stored:
        return (want,)
    if last != "weight_packed":
        return ()
    return (TensorSpec(f"{matrix}.weight", (want.shape[0], want.shape[1] * 8)),)


def _compare(name: str, entry: TensorEntry, spec: TensorSpec, found: _Found) -> None:
    where = f"in {entry.file.name}"
    if entry.shape != spec.shape:
        found.add("shape", name, f"has {list(entry.shape)}, config.json implies {list(spec.shape)} ({where})")
    readable = _readable(spec)
    if entry.dtype not in readable:
        found.add("dtype", name, f"stored as {entry.dtype}, readable are {', '.join(readable)} ({where})")


def _readable(spec: TensorSpec) -> tuple[str, ...]:
    if spec.name.endswith("weight_shape"):
        return ("I32", "I64")
    if spec.name.endswith("weight_scale") or spec.dtype == "I32":
        return (spec.dtype,)
    return FLOATS


def _compare_total(total: int | None, implied: int, config: TextConfig, found: _Found) -> None:
    """The index's total: exact, but for the types that exports choose differently."""
    if total is None:
        return
    matrices = len(config.moe_layers) * config.n_routed_experts * 3 if config.quantization else 0
    biases = len(config.moe_layers) * config.n_routed_experts
    # Stored shapes may be I64 instead of I32, selection biases BF16 instead of F32.
    possible = {implied + 8 * wide * matrices - 2 * narrow * biases for wide in (0, 1) for narrow in (0, 1)}
    if total not in possible:
        found.add("index", INDEX_NAME, f"metadata.total_size is {total:,}, config.json implies {implied:,}")


_PARTS = (
    (".weight_packed", "routed experts, packed"),
    (".weight_scale", "routed experts, scales"),
    (".weight_shape", "routed experts, shapes"),
    (".mlp.experts.", "routed experts"),
    (".mlp.shared_experts.", "shared experts"),
    (".mlp.gate.", "routers"),
    (".mlp.", "dense feed-forward"),
    (".self_attn.", "attention"),
    ("embed_tokens", "embedding"),
    ("lm_head", "output head"),
    ("norm", "norms"),
)


def _part(name: str) -> str:
    if name.startswith("vision_tower."):
        return "vision tower"
    if name.startswith("mm_projector."):
        return "projector"
    return next((part for mark, part in _PARTS if mark in name), "other")
