"""perilune checkpoint's room: make, verify, convert, and experts that stay in their files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from perilune.errors import CheckpointError, InputError, StorageFull
from perilune.model import shards
from perilune.model.attention import CausalAttention
from perilune.model.checkpoint import Checkpoint
from perilune.model.config import Int4, load_config, parse_config
from perilune.model.content_hash import LIST_NAME, content_hash
from perilune.model.convert import convert
from perilune.model.headers import INDEX_NAME
from perilune.model.inspection import inspect
from perilune.model.int4 import dequantise, pack, quantise, requantise
from perilune.model.load import load_model, load_moe
from perilune.model.make import make_checkpoint, with_experts
from perilune.model.shapes import K26, K26_VISION, SHAPES
from perilune.model.text import TextDecoder
from perilune.model.tiny import TINY, write_tiny_checkpoint
from perilune.model.verify import verify
from perilune.model.vision_config import parse_vision


def tiny(folder: Path, **changes: Any) -> Path:
    make_checkpoint(SHAPES["tiny"](), folder, **changes)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.get(name).clone() for name in checkpoint.entries}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logits(decoder: TextDecoder) -> torch.Tensor:
    ids = torch.arange(40)
    with torch.no_grad():
        return decoder.logits(decoder(ids, ids, CausalAttention(1, 40)))


def test_the_named_shapes_are_read_back_as_what_they_are() -> None:
    document = SHAPES["k2.6"]()
    config = parse_config(document)
    assert replace(config, quantization=K26.quantization) == K26
    assert config.quantization and config.quantization.group_size == 32
    assert parse_vision(document, config) == K26_VISION


def test_what_is_made_is_whole_runs_and_follows_the_seed(tmp_path: Path) -> None:
    first = tensors(tiny(tmp_path / "a"))
    assert inspect(tmp_path / "a").problems == ()
    assert torch.isfinite(logits(load_model(tmp_path / "a"))).all()
    assert same(first, tensors(tiny(tmp_path / "b", shard_bytes=50_000)))
    assert not same(first, tensors(tiny(tmp_path / "c", seed=1)))
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 5


def test_safetensors_reads_what_we_write(tmp_path: Path) -> None:
    tiny(tmp_path, shard_bytes=50_000)
    index = json.loads((tmp_path / INDEX_NAME).read_text())["weight_map"]
    stored = {
        name: tensor for path in tmp_path.glob("*.safetensors") for name, tensor in load_file(path).items()
    }
    assert stored.keys() == index.keys()
    read = tensors(tmp_path)
    assert all(
        torch.equal(tensor, read[name.removeprefix("language_model.")]) for name, tensor in stored.items()
    )


def test_random_experts_are_spread_like_the_other_weights(tmp_path: Path) -> None:
    state = load_model(tiny(tmp_path)).state_dict()
    spread = state["model.layers.1.mlp.experts.down_proj"].std().item()
    assert spread == pytest.approx(TINY.initializer_range, rel=0.15)


def test_tensors_start_where_their_type_allows(tmp_path: Path) -> None:
    config = replace(TINY, hidden_size=64, n_routed_experts=7, kv_lora_rank=15)
    write_tiny_checkpoint(tmp_path, config)
    for name, entry in Checkpoint.open(tmp_path).entries.items():
        assert entry.offset % {"BF16": 2}.get(entry.dtype, 4) == 0, name


def test_a_filled_folder_and_a_full_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="is not empty"):
        tiny(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StorageFull, match="are free"):
        tiny(tmp_path / "new")
    assert list((tmp_path / "new").glob("*.safetensors")) == []


def test_convert_there_and_back_gives_the_same_weights(tmp_path: Path) -> None:
    tiny(tmp_path / "a", shard_bytes=100_000)
    convert(tmp_path / "a", tmp_path / "b", "bf16", shard_bytes=100_000)
    convert(tmp_path / "b", tmp_path / "c", "int4", shard_bytes=100_000)
    assert all(inspect(tmp_path / name).problems == () for name in "abc")
    assert load_config(tmp_path / "b").quantization is None
    assert torch.equal(logits(load_model(tmp_path / "a")), logits(load_model(tmp_path / "b")))
    assert torch.equal(logits(load_model(tmp_path / "a")), logits(load_model(tmp_path / "c")))
    one, other = load_model(tmp_path / "a").state_dict(), load_model(tmp_path / "c").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_convert_keeps_everything_else(tmp_path: Path) -> None:
    document = SHAPES["tiny"]() | {"mine": 1}
    source = tmp_path / "a"
    make_checkpoint(document, source)
    (source / "LICENSE").write_text("words")
    (source / "perilune.json").write_text(json.dumps({"id": "x", "content_hash": content_hash(source)}))
    (source / "old.bin").write_bytes(b"weights")
    convert(source, tmp_path / "b", "bf16")
    read = json.loads((tmp_path / "b" / "config.json").read_text())
    assert read["mine"] == 1 and "quantization_config" not in read["text_config"]
    assert (tmp_path / "b" / "LICENSE").read_text() == "words" and not (tmp_path / "b" / "old.bin").exists()
    entry = json.loads((tmp_path / "b" / "perilune.json").read_text())
    assert entry == {"id": "x", "content_hash": load_model(tmp_path / "b").content_hash}
    before, after = tensors(source), tensors(tmp_path / "b")
    assert all(torch.equal(before[name], after[name]) for name in before if ".experts." not in name)


def test_convert_refuses_what_is_not_whole(tmp_path: Path) -> None:
    source = tiny(tmp_path / "a")
    path = source / "model-00001-of-000001.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="truncated"):
        convert(source, tmp_path / "b", "bf16")
    path.unlink()
    (source / INDEX_NAME).unlink()
    with pytest.raises(CheckpointError, match="holds no safetensors"):
        convert(source, tmp_path / "b", "bf16")
    assert not (tmp_path / "b").exists()


def test_experts_of_a_bare_config_are_changed_too() -> None:
    bare = SHAPES["tiny"]()["text_config"]
    assert parse_config(with_experts(bare, "bf16")).quantization is None
    again = parse_config(with_experts(with_experts(bare, "bf16"), "int4")).quantization
    assert again and again.group_size == Int4().group_size


@pytest.mark.parametrize("spread", [1e-4, 0.02, 30.0])
@pytest.mark.parametrize("steps", [7.5, 7.0, -7.0, 8.0])
def test_requantise_finds_the_weights_again(spread: float, steps: float) -> None:
    """Scales as several quantisers choose them: min-max, symmetric, and the negative one of -7."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(64, 256, generator=generator) * spread
    groups = weight.view(64, 8, 32)
    scale = (groups.abs().amax(-1) / steps).bfloat16()
    values = (groups / scale.float()[..., None]).round().clamp(-8, 7).to(torch.int8).view(64, 256)
    stored = dequantise(pack(values), scale)
    assert torch.equal(dequantise(*packed(*requantise(stored, 32))), stored)


def packed(values: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return pack(values), scale


def test_requantise_rounds_other_weights_as_quantise_does() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(4))
    for one, other in zip(requantise(weight, 32), quantise(weight, 32), strict=True):
        assert torch.equal(one, other)


def test_requantise_takes_groups_of_zeros() -> None:
    values, scale = requantise(torch.zeros(2, 64), 32)
    assert not values.any() and torch.isfinite(scale).all()


# ---- verify


def test_verify_reads_everything(tmp_path: Path) -> None:
    done = verify(tiny(tmp_path))
    assert (done.faults, done.hashed) == ((), 3)
    packed_tensors = sum(name.endswith("weight_packed") for name in Checkpoint.open(tmp_path).entries)
    assert done.checked == done.seen.tensors - packed_tensors


def _poke(folder: Path, name: str, change: Callable[[torch.Tensor], object]) -> None:
    path = Checkpoint.open(folder).entries[name].file
    stored = {one: tensor.clone() for one, tensor in load_file(path).items()}
    change(stored[f"language_model.{name}"])
    save_file(stored, path)


EXPERT = "model.layers.2.mlp.experts.3.up_proj."


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (f"{EXPERT}weight_scale", lambda t: t[0, 0].fill_(float("inf")), "1 of its values"),
        (f"{EXPERT}weight_scale", lambda t: t.fill_(float("nan")), "of its values"),
        ("model.norm.weight", lambda t: t[:3].fill_(float("nan")), "3 of its values"),
        (f"{EXPERT}weight_shape", lambda t: t.add_(1), "says [33, 65]"),
    ],
)
def test_verify_names_wrong_values(
    name: str, change: Callable[[torch.Tensor], object], says: str, tmp_path: Path
) -> None:
    _poke(tiny(tmp_path, hashes=False), name, change)
    (fault,) = verify(tmp_path).faults
    assert fault.name == name and says in fault.detail


def test_verify_compares_hashes_and_heads(tmp_path: Path) -> None:
    _poke(tiny(tmp_path), "model.norm.weight", lambda t: t.add_(1))
    assert [fault.name for fault in verify(tmp_path).faults] == ["model-00001-of-000001.safetensors"]
    (tmp_path / "model-00001-of-000001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no safetensors"):
        verify(tmp_path)


def test_a_list_of_hashes_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    (tiny(tmp_path) / LIST_NAME).write_text(f"{'0' * 64}  ../other\n")
    with pytest.raises(CheckpointError, match="not a file of this folder"):
        verify(tmp_path)


# ---- experts in place


@pytest.mark.parametrize("int4", [True, False])
def test_experts_in_their_files_compute_the_same(int4: bool, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, int4=int4)
    mapped = load_model(tmp_path, experts="files")
    assert not any(".experts." in name and "shared" not in name for name in mapped.state_dict())
    assert (logits(mapped) - logits(load_model(tmp_path))).abs().max() < 1e-5


def test_one_layer_alone_computes_what_it_does_in_the_model(tmp_path: Path) -> None:
    config = write_tiny_checkpoint(tmp_path)
    alone = load_moe(Checkpoint.open(tmp_path), config, 2, torch.float32)
    x = torch.randn(5, config.hidden_size, generator=torch.Generator().manual_seed(1))
    within = load_model(tmp_path).model.layers[2].mlp
    with torch.no_grad():
        assert (alone(x) - within(x)).abs().max() < 1e-5


def test_pages_can_be_given_back_while_tensors_are_held(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    held = checkpoint.get("model.norm.weight")
    before = held.clone()
    checkpoint.forget()
    assert torch.equal(held, before)


def test_pages_are_given_back_only_above_the_bound(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    written = checkpoint.get("model.norm.weight").fill_(7)
    checkpoint.forget(above=written.nbytes)
    assert (checkpoint.get("model.norm.weight") == 7).all()
    checkpoint.forget(above=written.nbytes)
    assert not (checkpoint.get("model.norm.weight") == 7).any()
