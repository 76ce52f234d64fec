"""Random damage to a checkpoint's files: refused in our words or read, never anything else.

The quick runs are the same every time. The slow ones (make soak) go on for FUZZ_SECONDS each and differ
from run to run; what they find becomes a case of test_found_before.
"""

from __future__ import annotations

import copy
import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perilune.errors import CheckpointError
from perilune.model.config import load_config, parse_config
from perilune.model.headers import INDEX_NAME, scan_header, weight_map
from perilune.model.inspection import inspect
from perilune.model.inspection_json import as_json
from perilune.model.layout import all_tensors
from perilune.model.shapes import SHAPES
from perilune.model.vision_config import parse_vision

SECONDS = float(os.environ.get("FUZZ_SECONDS", "30"))
QUICK = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(QUICK, max_examples=300, derandomize=False)

NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**63, 10**30, 10**400, 0.5, -1.0, 1e308, float("inf"), float("nan")]),
)
TEXTS = st.sampled_from(
    ["", "x", "yarn", "silu", "BF16", "F8_E4M3", "..", "/etc/x.safetensors", "\0", "☾" * 90]
)
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
CONFIG = SHAPES["tiny"]()
HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "b": {"dtype": "F32", "shape": [3], "data_offsets": [12, 24]},
}
INDEX = {
    "metadata": {"total_size": 24},
    "weight_map": {
        "a": "model-1.safetensors",
        "b": "model-2.safetensors",
        "language_model.lm_head.weight": "x",
    },
}


@st.composite
def damaged(draw: st.DrawFn, document: dict[str, Any]) -> dict[str, Any]:
    """The document with one to three of its values replaced, dropped or added, at any depth."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        target = document
        while True:
            name = draw(st.sampled_from([*target, "new"]))
            inner = target.get(name)
            if not isinstance(inner, dict) or not inner or draw(st.integers(0, 3)) == 0:
                break
            target = inner
        if draw(st.booleans()):
            target[name] = draw(JUNK)
        else:
            target.pop(name, None)
        if not document:
            break
    return document


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes cut off, or with a few of them replaced."""
    raw = bytearray(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)
    for _ in range(draw(st.integers(0, 3)) if raw else 0):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)


def config_is_read_or_refused(document: dict[str, Any]) -> None:
    try:
        config = parse_config(document)
        vision = parse_vision(document, config)
    except CheckpointError as error:
        assert error.field and error.mend and len(str(error)) < 1000
        return
    assert 0 < config.softmax_scale < float("inf")
    assert sum(1 for _ in all_tensors(config, vision)) < 3_000_000


def file_is_read_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        load_config(path.parent)
    except CheckpointError as error:
        assert error.mend and len(str(error)) < 1000


def shard(header: bytes, data: bytes = bytes(24)) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def header_is_read_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        header = scan_header(path)
    except CheckpointError as error:
        assert error.field == str(path) and error.mend
        return
    for entry in header.entries.values():
        assert entry.offset >= 8 and entry.offset + entry.nbytes <= len(content)
    for name, fault in header.faults.items():
        assert fault.field == name and fault.mend


def index_is_read_or_refused(folder: Path, content: bytes) -> None:
    (folder / INDEX_NAME).write_bytes(content)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model-1.safetensors").write_bytes(shard(json.dumps(HEADER).encode()))
    try:
        files = weight_map(folder)
        json.dumps(as_json(inspect(folder)))
    except CheckpointError as error:
        assert error.mend and len(str(error)) < 1000
        return
    assert all((folder / file).parent == folder for file in files.values())


Fuzz = tuple[st.SearchStrategy[Any], Callable[[Path, Any], None]]
FUZZES: dict[str, Fuzz] = {
    "config": (damaged(CONFIG), lambda _, document: config_is_read_or_refused(document)),
    "config file": (
        damaged_bytes(json.dumps(CONFIG).encode()) | st.binary(max_size=60),
        lambda folder, content: file_is_read_or_refused(folder / "config.json", content),
    ),
    "header": (
        damaged(HEADER).map(lambda header: shard(json.dumps(header).encode())),
        lambda folder, content: header_is_read_or_refused(folder / "model-1.safetensors", content),
    ),
    "header file": (
        damaged_bytes(shard(json.dumps(HEADER).encode())) | st.binary(max_size=60),
        lambda folder, content: header_is_read_or_refused(folder / "model-1.safetensors", content),
    ),
    "index": (
        damaged(INDEX).map(lambda index: json.dumps(index).encode()),
        lambda folder, content: index_is_read_or_refused(folder, content),
    ),
    "index file": (
        damaged_bytes(json.dumps(INDEX).encode()) | st.binary(max_size=60),
        lambda folder, content: index_is_read_or_refused(folder, content),
    ),
}


def run(name: str, folder: Path, limits: settings) -> None:
    strategy, check = FUZZES[name]
    limits(given(strategy)(lambda drawn: check(folder, drawn)))()


@pytest.mark.parametrize("name", FUZZES)
def test_damage_is_read_or_refused(name: str, tmp_path: Path) -> None:
    run(name, tmp_path, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZES)
def test_damage_is_read_or_refused_for_long(name: str, tmp_path: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        run(name, tmp_path, LONG)


@pytest.mark.parametrize(
    "content",
    [
        b'{"a":' * 100_000,
        b"1" * 5000,
        b'{"model_type": ' + b"1" * 5000 + b"}",
        b"\xff\xfe\x00",
        b'{"model_type": "\\ud800"}',
    ],
    ids=["nested", "long number", "long number inside", "not UTF-8", "lone surrogate"],
)
def test_found_before_in_json(content: bytes, tmp_path: Path) -> None:
    """Each of these once came out as a Python error instead of one of ours."""
    file_is_read_or_refused(tmp_path / "config.json", content)
    header_is_read_or_refused(tmp_path / "model-1.safetensors", shard(content))
    index_is_read_or_refused(tmp_path, content)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_theta", 0),
        ("rope_theta", 1),
        ("rms_norm_eps", 10**400),
        ("num_hidden_layers", 10**12),
        ("n_routed_experts", 10**9),
        ("vocab_size", 10**400),
        ("rope_scaling", {"type": "yarn", "factor": 0, "original_max_position_embeddings": 1}),
    ],
)
def test_found_before_in_configs(field: str, value: object) -> None:
    document = SHAPES["tiny"]()
    document["text_config"][field] = value
    with pytest.raises(CheckpointError) as caught:
        parse_config(document)
    assert field in (caught.value.field or "") and caught.value.mend


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": [], "shape": [6], "data_offsets": [0, 12]},
        {"dtype": "BF16", "shape": [-2, -3], "data_offsets": [0, 12]},
        {"dtype": "BF16", "shape": ["6"], "data_offsets": [0, 12]},
        {"dtype": "BF16", "shape": [6.0], "data_offsets": [0, 12]},
        {"dtype": "BF16", "shape": [1] * 100_000 + [6], "data_offsets": [0, 12]},
        {"dtype": "BF16", "shape": [2**62] * 8, "data_offsets": [0, 12]},
        {"dtype": "BF16", "shape": [6], "data_offsets": [-12, 0]},
    ],
    ids=["dtype", "negative", "text", "fraction", "dimensions", "huge", "before the data"],
)
def test_found_before_in_headers(fields: object, tmp_path: Path) -> None:
    path = tmp_path / "model-1.safetensors"
    path.write_bytes(shard(json.dumps({"a": fields}).encode()))
    header = scan_header(path)
    assert header.faults["a"].field == "a" and not header.entries


def test_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    header = copy.deepcopy(HEADER)
    header["b"]["data_offsets"] = [8, 20]
    path = tmp_path / "model-1.safetensors"
    path.write_bytes(shard(json.dumps(header).encode()))
    assert "lays it over another" in str(scan_header(path).faults["b"])


@pytest.mark.parametrize(
    "file", ["..", "", "a\0.safetensors", "\ud800.safetensors", "a/b.safetensors", "dir"]
)
def test_found_before_in_indexes(file: str, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(CheckpointError) as caught:
        weight_map(tmp_path)
    assert caught.value.field == "a"


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="is not a file"):
        load_config(tmp_path)
    os.mkfifo(tmp_path / "model-1.safetensors")
    with pytest.raises(CheckpointError, match="file not found"):
        scan_header(tmp_path / "model-1.safetensors")
