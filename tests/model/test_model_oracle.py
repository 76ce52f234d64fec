"""Independent implementations: transformers for the logits, compressed-tensors for INT4."""

from __future__ import annotations

import inspect
import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import perilune
from perilune.chat.tokenizer import Tokenizer
from perilune.model.attention import AbsorbedAttention, CausalAttention, LatentCache, PagedBatch
from perilune.model.config import TextConfig, Yarn
from perilune.model.int4 import dequantise, pack, quantise, unpack
from perilune.model.load import load_model
from perilune.model.rotary import frequencies
from perilune.model.text import TextDecoder
from perilune.model.tiny import TINY, random_decoder, write_tiny_checkpoint

pytestmark = [
    pytest.mark.oracle,
    # What other packages warn about while they import and build is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]

SHAPES = {
    "tiny": TINY,
    "one_query_matrix": replace(TINY, q_lora_rank=None),
    "no_yarn": replace(TINY, yarn=None),
    "beta_fast_1": replace(TINY, yarn=Yarn(64.0, 4096, beta_fast=1.0)),
    "uneven_heads": replace(TINY, qk_nope_head_dim=24, v_head_dim=40, kv_lora_rank=20, num_attention_heads=3),
    "two_shared_dense_first_two": replace(TINY, n_shared_experts=2, first_k_dense_replace=2),
    "wide": replace(
        TINY,
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=128,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=64,
        q_lora_rank=96,
        num_hidden_layers=4,
        initializer_range=0.05,
    ),
}


def oracle(config: TextConfig, state: dict[str, torch.Tensor]) -> Any:
    transformers = pytest.importorskip("transformers")
    yarn = config.yarn
    scaling = None
    if yarn:
        scaling = {**vars(yarn), "type": "yarn"}
    apart = {"yarn", "quantization", "latent_norm_eps"}
    fields = {name: value for name, value in vars(config).items() if name not in apart}
    theirs = transformers.DeepseekV3Config(
        **fields,
        num_key_value_heads=config.num_attention_heads,
        n_group=1,
        topk_group=1,
        rope_scaling=scaling,
    )
    model = transformers.DeepseekV3ForCausalLM(theirs).eval()
    model.load_state_dict(state)
    return model


LAST_POSITION = 262_143
BLOCK = 8


def random_shape(seed: int) -> TextConfig:
    """A small config drawn from all that a config of this family may say."""
    draw = random.Random(seed)
    layers, routed = draw.randint(1, 4), draw.choice([4, 6, 8, 16])
    stretched = Yarn(
        factor=draw.choice([4.0, 32.0, 64.0]),
        original_max_position_embeddings=4096,
        beta_fast=draw.choice([1.0, 16.0, 32.0]),
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=draw.choice([0.7, 1.0]),
    )
    return replace(
        TINY,
        latent_norm_eps=1e-6,
        hidden_size=draw.choice([32, 48, 64, 96]),
        intermediate_size=draw.choice([40, 64, 128]),
        moe_intermediate_size=draw.choice([16, 32, 48]),
        num_hidden_layers=layers,
        first_k_dense_replace=draw.randint(0, layers),
        num_attention_heads=draw.randint(1, 5),
        q_lora_rank=draw.choice([None, 16, 24, 40]),
        kv_lora_rank=draw.choice([8, 16, 20, 32]),
        qk_nope_head_dim=draw.choice([8, 16, 24]),
        qk_rope_head_dim=draw.choice([4, 8, 16, 64]),
        v_head_dim=draw.choice([8, 16, 40]),
        n_routed_experts=routed,
        num_experts_per_tok=draw.randint(2, min(4, routed)),
        n_shared_experts=draw.randint(1, 2),
        norm_topk_prob=draw.random() < 0.7,
        routed_scaling_factor=draw.choice([1.0, 2.5, 2.827]),
        rope_theta=draw.choice([10_000.0, 50_000.0]),
        yarn=draw.choice([None, stretched, stretched]),
        initializer_range=draw.choice([0.04, 0.06]),
        quantization=None,
    )


def places(seed: int, batch: int, length: int) -> torch.Tensor:
    """int64 [batch, length], ascending: the first row ends at the last position, the others lie anywhere."""
    draw = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, LAST_POSITION - length, (batch,), generator=draw)
    starts[0] = LAST_POSITION - length + 1
    return starts[:, None] + torch.arange(length)


@pytest.mark.parametrize("seed", range(40))
@torch.no_grad()
def test_random_shapes_at_far_positions_equal_transformers(seed: int) -> None:
    """Plain and absorbed attention, F32, positions up to 262,143."""
    config, batch, length = random_shape(seed), 2, 24
    decoder = random_decoder(config, seed)
    theirs = oracle(config, decoder.state_dict())
    torch.manual_seed(seed)
    ids, positions = torch.randint(0, config.vocab_size, (batch, length)), places(seed, batch, length)
    want = theirs(ids, position_ids=positions).logits
    plain = decoder.logits(decoder(ids.flatten(), positions.flatten(), CausalAttention(batch, length)))
    absorbed = absorbed_logits(decoder, ids, positions)
    assert want.abs().max() > 0.1
    assert (plain.view_as(want) - want).abs().max() <= 1e-4
    assert (absorbed - want).abs().max() <= 1e-4
    assert (absorbed - plain.view_as(want)).abs().max() <= 1e-5


def absorbed_logits(decoder: TextDecoder, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[batch, length, vocab], fed in two uneven chunks and then token by token, from an empty cache."""
    batch, length = ids.shape
    blocks = -(-length // BLOCK)
    cache = LatentCache.allocate(decoder.config, batch * blocks, BLOCK)
    tables = [list(range(row * blocks, (row + 1) * blocks)) for row in range(batch)]
    cuts = [0, 7, 20, *range(21, length + 1)]
    parts = []
    for start, end in itertools.pairwise(cuts):
        step = PagedBatch.build([end - start] * batch, [end] * batch, tables, BLOCK)
        rows, where = ids[:, start:end].flatten(), positions[:, start:end].flatten()
        parts.append(
            decoder.logits(decoder(rows, where, AbsorbedAttention(cache, step))).view(batch, end - start, -1)
        )
    return torch.cat(parts, dim=1)


def largest_difference(decoder: TextDecoder, theirs: Any, batch: int, length: int) -> tuple[float, float]:
    ids = torch.randint(0, decoder.config.vocab_size, (batch, length))
    with torch.no_grad():
        want = theirs(ids).logits
        positions = torch.arange(length).repeat(batch)
        hidden = decoder(ids.flatten(), positions, CausalAttention(batch, length))
        got = decoder.logits(hidden).view(batch, length, -1)
    return (got - want).abs().max().item(), want.abs().max().item()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_transformers(shape: str, seed: int) -> None:
    """transformers fixes the epsilon of the two latent norms at 1e-6."""
    config = replace(SHAPES[shape], latent_norm_eps=1e-6)
    decoder = random_decoder(config, seed)
    torch.manual_seed(seed)
    difference, size = largest_difference(decoder, oracle(config, decoder.state_dict()), 2, 80)
    assert size > 1.0
    assert difference <= 1e-4


def test_int4_checkpoint_read_back_equals_transformers(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, seed=5)
    decoder = load_model(tmp_path, latent_norm_eps=1e-6)
    theirs = oracle(decoder.config, decoder.state_dict())
    difference, _ = largest_difference(decoder, theirs, 1, 60)
    assert difference <= 1e-4


def test_the_bundled_checkpoint_equals_transformers() -> None:
    """On Python text. Beyond some 300 tokens the rounding of transformers itself nears the tolerance, and at
    1,200 it is 0.0003, measured against F64: longer texts are compared with our own F64."""
    folder = Path(perilune.__file__).parent / "nano_checkpoint"
    decoder = load_model(folder, latent_norm_eps=1e-6)
    theirs = oracle(decoder.config, decoder.state_dict())
    text = inspect.getsource(load_model) + inspect.getsource(TextDecoder)
    ids = torch.tensor(Tokenizer.load(folder).encode(text))
    assert len(ids) >= 1_200

    def ours(model: TextDecoder, length: int) -> torch.Tensor:
        hidden = model(ids[:length], torch.arange(length), CausalAttention(1, length))
        return model.logits(hidden)

    with torch.no_grad():
        for length in (50, 100, 200):
            want = theirs(ids[None, :length]).logits[0]
            assert want.abs().max() > 10.0
            assert (ours(decoder, length) - want).abs().max() <= 1e-4
        short = ours(decoder, 1_200)
        assert (short - ours(decoder.double(), 1_200)).abs().max() <= 1e-4


def test_written_tensor_names_load_in_transformers(tmp_path: Path) -> None:
    """An unquantised checkpoint in official names goes through transformers' own loader."""
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    config = write_tiny_checkpoint(tmp_path / "ours", int4=False)
    decoder = load_model(tmp_path / "ours", latent_norm_eps=1e-6)
    tensors = {}
    for path in (tmp_path / "ours").glob("*.safetensors"):
        tensors |= {name.removeprefix("language_model."): t for name, t in load_file(path).items()}
    theirs = oracle(config, decoder.state_dict())
    theirs.config.save_pretrained(tmp_path / "theirs")
    save_file(tensors, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    model, report = transformers.DeepseekV3ForCausalLM.from_pretrained(
        tmp_path / "theirs", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    difference, _ = largest_difference(decoder, model.eval(), 1, 40)
    assert difference <= 1e-4


@pytest.mark.parametrize("beta_fast", [1.0, 32.0])
@pytest.mark.parametrize("width", [8, 64])
def test_yarn_equals_transformers(width: int, beta_fast: float) -> None:
    config = replace(TINY, qk_rope_head_dim=width, yarn=Yarn(64.0, 4096, beta_fast=beta_fast))
    theirs = oracle(config, random_decoder(config).state_dict()).model.rotary_emb.inv_freq
    assert torch.equal(frequencies(config), theirs)


def quantisation(group_size: int) -> Any:
    quant = pytest.importorskip("compressed_tensors.quantization")
    return quant.QuantizationArgs(
        num_bits=4, type="int", symmetric=True, strategy="group", group_size=group_size
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("group_size", [32, 16])
def test_int4_equals_compressed_tensors(group_size: int, seed: int) -> None:
    packing = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    torch.manual_seed(seed)
    weight = torch.randn(48, 128)
    values, scale = quantise(weight, group_size)
    args = quantisation(group_size)
    zero = torch.zeros_like(scale, dtype=torch.int8)
    theirs = forward.quantize(weight, scale, zero, args, dtype=torch.int8)
    assert torch.equal(values, theirs)
    packed = packing.pack_to_int32(theirs, 4)
    assert torch.equal(pack(values), packed)
    assert torch.equal(unpack(packed), packing.unpack_from_int32(packed, 4, torch.Size(weight.shape)))
    back = forward.dequantize(theirs, scale, zero, args=args)
    assert back.dtype == torch.bfloat16
    assert torch.equal(dequantise(packed, scale), back)


def test_int4_equals_compressed_tensors_for_every_nibble_and_many_scales() -> None:
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    torch.manual_seed(0)
    values = torch.arange(-8, 8, dtype=torch.int8).repeat(4096, 2)
    scale = (torch.randn(4096, 1).exp() * torch.randn(4096, 1).sign()).bfloat16()
    theirs = forward.dequantize(
        values, scale, torch.zeros_like(scale, dtype=torch.int8), args=quantisation(32)
    )
    assert torch.equal(dequantise(pack(values), scale), theirs)
