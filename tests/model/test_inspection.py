"""perilune inspect's room: what a checkpoint is, and everything that is wrong with it by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from perilune.errors import CheckpointError
from perilune.model.headers import INDEX_NAME
from perilune.model.inspection import inspect
from perilune.model.inspection_json import as_json
from perilune.model.load import load_model
from perilune.model.make import make_checkpoint
from perilune.model.shapes import SHAPES
from perilune.model.tiny import write_tiny_checkpoint

_NAMED = os.environ.get("PERILUNE_K26_TOKENIZER")
OFFICIAL = Path(_NAMED or Path(__file__).resolve().parents[3] / "shared" / "data" / "k26-tokenizer")
P = "language_model."
NORM = f"{P}model.norm.weight"
SCALE = f"{P}model.layers.1.mlp.experts.5.gate_proj.weight_scale"


def make(folder: Path) -> Path:
    make_checkpoint(SHAPES["tiny"](), folder, shard_bytes=100_000)
    return folder


def rewrite(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the shard that holds tensor `name`."""
    path = folder / json.loads((folder / INDEX_NAME).read_text())["weight_map"][name]
    tensors = {stored: tensor.clone() for stored, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def reindex(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / INDEX_NAME).read_text())
    change(document)
    (folder / INDEX_NAME).write_text(json.dumps(document))


def found(folder: Path) -> set[tuple[str, str]]:
    return {(problem.kind, problem.name) for problem in inspect(folder).problems}


def check_k26_census(seen: dict[str, Any]) -> None:
    assert (seen["tensors"], seen["bytes"]) == (208_550, 595_148_192_736)
    assert seen["parameters"] == {"total": 1_026_879_376_368, "active": 31_687_095_808}
    assert seen["cache"] == {"bytes_per_token": 70_272, "context": 262_144, "bytes": 18_421_383_168}
    parts = {name: part["bytes"] for name, part in seen["parts"].items()}
    assert parts["routed experts, packed"] == 507_343_011_840
    assert parts["routed experts, scales"] == 63_417_876_480
    assert parts["vision tower"] + parts["projector"] == 942_287_840
    assert sum(parts.values()) == seen["bytes"]


def test_the_k26_shape_has_the_published_census(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["k2.6"]()))
    check_k26_census(as_json(inspect(tmp_path)))


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official config.json is not here")
def test_the_official_config_has_the_published_census() -> None:
    check_k26_census(as_json(inspect(OFFICIAL)))


def test_a_whole_checkpoint_has_no_problems(tmp_path: Path) -> None:
    seen = inspect(make(tmp_path))
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert (seen.source, seen.problems) == ("files", ())
    assert (seen.tensors, seen.nbytes) == (len(index["weight_map"]), index["metadata"]["total_size"])
    assert sum(part.parameters for part in seen.parts.values()) == seen.parameters


def test_config_alone_and_index_alone_say_the_same_as_the_files(tmp_path: Path) -> None:
    files = inspect(make(tmp_path))
    alone = inspect(tmp_path / "config.json")
    by_index = inspect(tmp_path / INDEX_NAME)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    without_files = inspect(tmp_path)
    assert [seen.source for seen in (alone, by_index, without_files)] == ["config", "index", "index"]
    for seen in (alone, by_index, without_files):
        assert (seen.tensors, seen.nbytes, seen.parts) == (files.tensors, files.nbytes, files.parts)
        assert seen.problems == ()


@pytest.mark.parametrize(
    ("damage", "problems"),
    [
        (lambda f: rewrite(f, NORM, lambda t: t.pop(NORM)), {("missing", NORM)}),
        (lambda f: rewrite(f, NORM, lambda t: t.update({NORM: torch.ones(63)})), {("shape", NORM)}),
        (lambda f: rewrite(f, SCALE, lambda t: t.update({SCALE: t[SCALE].float()})), {("dtype", SCALE)}),
        (
            lambda f: rewrite(f, NORM, lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn)})),
            {("dtype", NORM)},
        ),
        (lambda f: rewrite(f, NORM, lambda t: t.update(more=torch.ones(1))), {("index", "more")}),
        (
            lambda f: reindex(f, lambda index: index["weight_map"].pop(NORM)),
            {("missing", "model.norm.weight"), ("index", NORM)},
        ),
        (lambda f: save_file({"x": torch.ones(1)}, f / "odd.safetensors"), {("extra", "odd.safetensors")}),
    ],
    ids=["dropped", "shape", "scale type", "unknown type", "not in index", "no index entry", "odd file"],
)
def test_each_fault_is_named(
    damage: Callable[[Path], object], problems: set[tuple[str, str]], tmp_path: Path
) -> None:
    damage(make(tmp_path))
    assert found(tmp_path) == problems


def test_an_unknown_quantisation_of_a_tensor_is_named(tmp_path: Path) -> None:
    rewrite(make(tmp_path), NORM, lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn)}))
    (problem,) = inspect(tmp_path).problems
    assert "F8_E4M3" in problem.detail


def test_a_truncated_shard_names_what_is_cut_off(tmp_path: Path) -> None:
    index = json.loads((make(tmp_path) / INDEX_NAME).read_text())["weight_map"]
    path = tmp_path / index[NORM]
    path.write_bytes(path.read_bytes()[:-20_000])
    seen = inspect(tmp_path)
    cut = {problem.name for problem in seen.problems}
    assert {problem.kind for problem in seen.problems} == {"truncated"}
    assert cut and all(index[name] == path.name for name in cut)
    assert seen.tensors == len(index) - len(cut)


def test_a_lost_shard_names_all_its_tensors(tmp_path: Path) -> None:
    index = json.loads((make(tmp_path) / INDEX_NAME).read_text())["weight_map"]
    (tmp_path / index[NORM]).unlink()
    lost = {("missing", name) for name, file in index.items() if file == index[NORM]}
    assert found(tmp_path) == lost | {("missing", index[NORM])}


def test_a_wrong_index_is_found_without_files(tmp_path: Path) -> None:
    make(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    reindex(tmp_path, lambda index: index["metadata"].update(total_size=5))
    assert found(tmp_path) == {("index", INDEX_NAME)}
    reindex(tmp_path, lambda index: index["weight_map"].update(more="model-00001-of-000001.safetensors"))
    reindex(tmp_path, lambda index: index["weight_map"].pop(NORM))
    assert found(tmp_path) == {("missing", "model.norm.weight"), ("extra", "more")}


VARIANTS: dict[str, Callable[[str], str]] = {
    "K2": lambda name: name.removeprefix(P),
    "older NVFP4 exports": lambda name: name.replace(f"{P}model.layers.", f"{P}layers."),
    "transformers 5": lambda name: (
        name.removeprefix(P)
        if "lm_head" in name
        else "model." + name.replace(f"{P}model.", P)
        if name.startswith(P)
        else f"model.{name}"
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_known_beginnings_of_names_are_understood(variant: str, tmp_path: Path) -> None:
    make(tmp_path / "a")
    tensors = {
        VARIANTS[variant](name): tensor
        for path in sorted((tmp_path / "a").glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    (tmp_path / "b").mkdir()
    save_file(tensors, tmp_path / "b" / "model.safetensors")
    (tmp_path / "b" / "config.json").write_bytes((tmp_path / "a" / "config.json").read_bytes())
    assert inspect(tmp_path / "b").problems == ()
    one, other = (load_model(tmp_path / name).state_dict() for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    rewrite(tmp_path, NORM, lambda t: t.update({"model.norm.weight": t[NORM].clone()}))
    reindex(
        tmp_path, lambda index: index["weight_map"].update({"model.norm.weight": index["weight_map"][NORM]})
    )
    assert found(tmp_path) == {("extra", "model.norm.weight")}
    (tmp_path / "checkpoint.sha256").unlink()
    with pytest.raises(CheckpointError, match="stored twice"):
        load_model(tmp_path)


def test_computed_tables_are_tolerated(tmp_path: Path) -> None:
    table = f"{P}model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(make(tmp_path), NORM, lambda t: t.update({table: torch.ones(4)}))
    reindex(tmp_path, lambda index: index["weight_map"].update({table: index["weight_map"][NORM]}))
    assert found(tmp_path) == set()


def test_single_experts_stored_as_bf16_count_as_whole(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, int4=False)
    packed = SHAPES["tiny"]()
    del packed["vision_config"]
    (tmp_path / "config.json").write_text(json.dumps(packed))
    seen = inspect(tmp_path)
    assert seen.problems == () and "routed experts, packed" not in seen.parts


@pytest.mark.parametrize("name", ["gone", "gone.json", "tiktoken.model"])
def test_a_path_that_is_no_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "tiktoken.model").touch()
    with pytest.raises(CheckpointError) as caught:
        inspect(tmp_path / name)
    assert caught.value.mend


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("merge_type", "average"),
        ("text_hidden_size", 63),
        ("mm_hidden_size", 47),
        ("vt_num_attention_heads", 5),
        ("merge_kernel_size", [2]),
        ("merge_kernel_size", [2, 0]),
        ("vt_num_hidden_layers", 10_000),
    ],
)
def test_vision_configs_are_refused_by_name(field: str, value: object, tmp_path: Path) -> None:
    document = SHAPES["tiny"]()
    document["vision_config"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError) as caught:
        inspect(tmp_path)
    assert (caught.value.field or "").startswith("vision_config.")
