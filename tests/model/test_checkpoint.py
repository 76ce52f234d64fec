"""Checkpoint folders: round trip, and what damage says."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from perilune.errors import CheckpointError
from perilune.model import load, memory
from perilune.model.attention import CausalAttention
from perilune.model.checkpoint import INDEX_NAME, Checkpoint
from perilune.model.config import Int4, TextConfig, load_config, parse_config
from perilune.model.content_hash import LIST_NAME
from perilune.model.int4 import fake_quantise
from perilune.model.layout import text_tensors
from perilune.model.load import load_model, resident_bytes
from perilune.model.shapes import SHAPES
from perilune.model.text import TextDecoder
from perilune.model.tiny import TINY, random_decoder, write_tiny_checkpoint
from perilune.model.writer import write_checkpoint

GATE_5 = "model.layers.1.mlp.experts.5.gate_proj"


def logits(decoder: TextDecoder) -> torch.Tensor:
    ids = torch.arange(40)
    with torch.no_grad():
        return decoder.logits(decoder(ids, ids, CausalAttention(1, 40)))


def stored_state(config: TextConfig) -> dict[str, torch.Tensor]:
    """What the random decoder's weights are after the checkpoint's rounding."""
    state = random_decoder(config).state_dict()
    for name, tensor in state.items():
        if ".experts." in name and "shared" not in name and config.quantization:
            state[name] = fake_quantise(tensor, config.quantization.group_size).bfloat16().float()
        elif "bias" not in name:
            state[name] = tensor.bfloat16().float()
    return state


@pytest.mark.parametrize("int4", [True, False])
@pytest.mark.parametrize("q_lora_rank", [24, None])
def test_written_checkpoint_reads_back(tmp_path: Path, int4: bool, q_lora_rank: int | None) -> None:
    config = write_tiny_checkpoint(tmp_path, replace(TINY, q_lora_rank=q_lora_rank), int4=int4)
    read = load_model(tmp_path)
    assert replace(read.config, quantization=None) == replace(config, quantization=None)
    assert (read.config.quantization is not None) == int4
    want = stored_state(config)
    got = read.state_dict()
    assert got.keys() == want.keys()
    for name in want:
        assert torch.equal(got[name], want[name]), name
    rounded = TextDecoder(config)
    rounded.load_state_dict(want)
    assert torch.equal(logits(read), logits(rounded))


def test_written_tensors_are_exactly_the_official_ones(tmp_path: Path) -> None:
    config = write_tiny_checkpoint(tmp_path)
    entries = Checkpoint.open(tmp_path).entries
    assert len({entry.file for entry in entries.values()}) > 1
    want = {spec.name: (spec.shape, spec.dtype) for spec in text_tensors(config)}
    assert {name: (entry.shape, entry.dtype) for name, entry in entries.items()} == want
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert all(name.startswith("language_model.") for name in index["weight_map"])
    assert index["metadata"]["total_size"] == sum(spec.nbytes for spec in text_tensors(config))


def test_writing_again_replaces_every_shard(tmp_path: Path) -> None:
    write_checkpoint(random_decoder(seed=1).state_dict(), TINY, tmp_path, shard_bytes=20_000)
    write_checkpoint(random_decoder(seed=2).state_dict(), TINY, tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model-00001-of-000001.safetensors"]
    write_checkpoint(random_decoder(seed=2).state_dict(), TINY, tmp_path / "fresh")
    assert torch.equal(logits(load_model(tmp_path)), logits(load_model(tmp_path / "fresh")))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("model.norm.weight"), "model.norm.weight: missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra: not a tensor"),
        (lambda state: state.update({"model.norm.weight": torch.ones(3)}), r"has shape \[3\]"),
        (lambda state: state.update({"model.norm.weight": torch.full((64,), math.nan)}), "NaN"),
    ],
)
def test_a_state_of_another_model_is_not_written(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], says: str
) -> None:
    state = random_decoder().state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=says):
        write_checkpoint(state, TINY, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_single_file_without_prefix(tmp_path: Path) -> None:
    config = write_tiny_checkpoint(tmp_path / "a", int4=False)
    tensors = {}
    for path in (tmp_path / "a").glob("*.safetensors"):
        tensors |= {name.removeprefix("language_model."): t for name, t in load_file(path).items()}
    (tmp_path / "b").mkdir()
    save_file(tensors, tmp_path / "b" / "model.safetensors")
    text = json.loads((tmp_path / "a" / "config.json").read_text())["text_config"]
    (tmp_path / "b" / "config.json").write_text(json.dumps(text))
    assert load_config(tmp_path / "b") == config
    assert torch.equal(logits(load_model(tmp_path / "a")), logits(load_model(tmp_path / "b")))


def test_mapped_tensors_never_change_the_file(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    before = checkpoint.get("model.norm.weight").clone()
    checkpoint.get("model.norm.weight").zero_()
    assert torch.equal(Checkpoint.open(tmp_path).get("model.norm.weight"), before)


def test_content_hash_follows_the_weights(tmp_path: Path) -> None:
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_tiny_checkpoint(tmp_path / name, seed=seed)
        hashes.append(load_model(tmp_path / name).content_hash)
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(hashes[0]) == 64


def _shard_with(folder: Path, tensor: str) -> Path:
    return Checkpoint.open(folder).entries[tensor].file


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], tensor: str) -> None:
    path = _shard_with(folder, tensor)
    tensors = {name: t.clone() for name, t in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def _truncate(folder: Path) -> None:
    path = _shard_with(folder, "model.norm.weight")
    path.write_bytes(path.read_bytes()[:-10])


def _cut_header(folder: Path) -> None:
    path = _shard_with(folder, "model.norm.weight")
    path.write_bytes(path.read_bytes()[:40])


def _empty(folder: Path) -> None:
    _shard_with(folder, "model.norm.weight").write_bytes(b"")


def _huge_header(folder: Path) -> None:
    path = _shard_with(folder, "model.norm.weight")
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])


def _not_json(folder: Path) -> None:
    path = _shard_with(folder, "model.norm.weight")
    path.write_bytes(path.read_bytes()[:8] + b"x" + path.read_bytes()[9:])


def _delete_shard(folder: Path) -> None:
    _shard_with(folder, "model.norm.weight").unlink()


def _drop_tensor(folder: Path) -> None:
    _rewrite(folder, lambda t: t.__delitem__("language_model.model.norm.weight"), "model.norm.weight")


def _drop_everywhere(folder: Path) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    del index["weight_map"][f"language_model.{GATE_5}.weight_scale"]
    (folder / INDEX_NAME).write_text(json.dumps(index))


def _wrong_shape(folder: Path) -> None:
    name = "language_model.model.norm.weight"
    _rewrite(folder, lambda t: t.update({name: t[name][:-1].clone()}), "model.norm.weight")


def _wrong_dtype(folder: Path) -> None:
    name = f"language_model.{GATE_5}.weight_packed"
    _rewrite(folder, lambda t: t.update({name: t[name].float()}), f"{GATE_5}.weight_packed")


def _wrong_stored_shape(folder: Path) -> None:
    name = f"language_model.{GATE_5}.weight_shape"
    _rewrite(folder, lambda t: t.update({name: t[name] + 1}), f"{GATE_5}.weight_shape")


def _no_quantization_config(folder: Path) -> None:
    document = json.loads((folder / "config.json").read_text())
    del document["text_config"]["quantization_config"]
    (folder / "config.json").write_text(json.dumps(document))


def _bad_index(folder: Path) -> None:
    (folder / INDEX_NAME).write_text('{"weight_map": [')


def _index_escapes(folder: Path) -> None:
    (folder / INDEX_NAME).write_text('{"weight_map": {"model.norm.weight": "../x.safetensors"}}')


def _no_files(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / INDEX_NAME]:
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncate, ["lm_head.weight", "truncated", "model-0000"]),
        (_cut_header, ["model-0000", "truncated or not safetensors"]),
        (_empty, ["model-0000", "truncated or not safetensors"]),
        (_huge_header, ["model-0000", "truncated or not safetensors"]),
        (_not_json, ["model-0000", "not readable as JSON"]),
        (_delete_shard, ["model-0000", "file not found"]),
        (_drop_tensor, ["model.norm.weight", "does not have it"]),
        (_drop_everywhere, [f"{GATE_5}.weight_scale", "missing"]),
        (_wrong_shape, ["model.norm.weight", "[63]", "[64]"]),
        (_wrong_dtype, [f"{GATE_5}.weight_packed", "F32", "I32"]),
        (_wrong_stored_shape, [f"{GATE_5}.weight_shape", "[33, 65]", "[32, 64]"]),
        (_no_quantization_config, [".weight_packed", "no quantization_config"]),
        (_bad_index, [INDEX_NAME, "not readable as JSON"]),
        (_index_escapes, ["outside the folder"]),
        (_no_files, ["has neither"]),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], says: list[str]) -> None:
    write_tiny_checkpoint(tmp_path)
    damage(tmp_path)
    (tmp_path / LIST_NAME).unlink()
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path)
    for text in says:
        assert text in str(caught.value)
    assert caught.value.mend


def test_a_changed_byte_is_found_by_the_list_of_hashes(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    path = _shard_with(tmp_path, "model.norm.weight")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"does not match checkpoint\.sha256") as caught:
        load_model(tmp_path)
    assert caught.value.field == str(path)


def test_a_listed_file_that_is_gone_is_found(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, tokenizer=True)
    (tmp_path / LIST_NAME).write_text((tmp_path / LIST_NAME).read_text() + f"{'0' * 64}  gone.json\n")
    with pytest.raises(CheckpointError, match=r"gone\.json"):
        load_model(tmp_path)


def test_a_checkpoint_too_large_for_memory_is_refused_before_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_tiny_checkpoint(tmp_path)
    whole, rest = resident_bytes(config, torch.float32)
    assert rest < whole
    monkeypatch.setattr(load, "free_memory", lambda: int(whole * load.SPARE) - 1)
    with pytest.raises(CheckpointError, match="is free") as caught:
        load_model(tmp_path)
    assert 'experts = "files"' in str(caught.value.mend) and "bfloat16" in str(caught.value.mend)
    assert load_model(tmp_path, experts="files").experts_in_files
    assert load_model(tmp_path, experts="auto").experts_in_files
    monkeypatch.setattr(load, "free_memory", lambda: int(rest * load.SPARE) - 1)
    with pytest.raises(CheckpointError, match="is free") as caught:
        load_model(tmp_path, experts="files")
    assert "files" not in str(caught.value.mend)


def test_a_folder_without_weights_is_told_before_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_checkpoint(tmp_path)
    for shard in tmp_path.glob("model*"):
        shard.unlink()
    monkeypatch.setattr(load, "free_memory", lambda: 0)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("free", [None, 10**12])
def test_experts_lie_in_memory_where_it_suffices_or_is_not_known(
    free: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_checkpoint(tmp_path)
    monkeypatch.setattr(load, "free_memory", lambda: free)
    assert not load_model(tmp_path, experts="auto").experts_in_files
    assert load_model(tmp_path, experts="files").experts_in_files


def test_k26_needs_24_gb_beside_its_files() -> None:
    assert resident_bytes(parse_config(SHAPES["k2.6"]()), torch.bfloat16) == (
        2_052_816_464_896,
        23_444_417_536,
    )


def test_a_container_leaves_no_more_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       4000 kB\nMemAvailable:   3000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_memory() == 3_072_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900000\n")
    assert memory.free_memory() == 3_072_000
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("active_file 7\ninactive_file 50000\n")
    assert memory.free_memory() == 150_000
    (tmp_path / "meminfo").unlink()
    assert memory.free_memory() == 150_000
    (tmp_path / "memory.max").unlink()
    assert memory.free_memory() is None


def test_group_size_other_than_32(tmp_path: Path) -> None:
    config = write_tiny_checkpoint(tmp_path, replace(TINY, quantization=Int4(group_size=16)))
    want = stored_state(config)
    assert torch.equal(
        load_model(tmp_path).state_dict()["model.layers.1.mlp.experts.down_proj"],
        want["model.layers.1.mlp.experts.down_proj"],
    )


def test_loads_as_bf16_with_the_bias_in_f32(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    state = load_model(tmp_path, torch.bfloat16).state_dict()
    kinds = {name.endswith("e_score_correction_bias"): tensor.dtype for name, tensor in state.items()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
