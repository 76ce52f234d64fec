"""Which tensors an official checkpoint holds, by name, shape and stored type.

Imports no torch. Names are plain names (model/names.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from perilune.model.config import TextConfig
from perilune.model.headers import ITEM_BYTES
from perilune.model.vision_config import VisionConfig

PACKED_SUFFIXES = ("weight_packed", "weight_scale", "weight_shape")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor as the official checkpoint stores it."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "BF16"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def parameters(self) -> int:
        """Weights it stands for: eight to a packed word, none in scales and stored shapes."""
        if self.name.endswith(PACKED_SUFFIXES):
            return math.prod(self.shape) * 8 if self.name.endswith("weight_packed") else 0
        return math.prod(self.shape)


def all_tensors(config: TextConfig, vision: VisionConfig | None) -> Iterator[TensorSpec]:
    """Text model, then vision tower and projector if there are any."""
    yield from text_tensors(config)
    if vision is not None:
        yield from vision_tensors(vision)


def text_tensors(config: TextConfig) -> Iterator[TensorSpec]:
    """All tensors of the text model, INT4 experts as three tensors each."""
    hidden = config.hidden_size
    yield TensorSpec("model.embed_tokens.weight", (config.vocab_size, hidden))
    for index in range(config.num_hidden_layers):
        yield from _layer(config, index)
    yield TensorSpec("model.norm.weight", (hidden,))
    yield TensorSpec("lm_head.weight", (config.vocab_size, hidden))


def expert_tensors(config: TextConfig, prefix: str) -> Iterator[TensorSpec]:
    """The tensors of one routed expert; `prefix` ends before `gate_proj`."""
    for name, shape in expert_shapes(config).items():
        yield from _matrix(config, f"{prefix}{name}", shape)


def expert_shapes(config: TextConfig) -> dict[str, tuple[int, int]]:
    """[out, in] of one routed expert's three matrices."""
    hidden, width = config.hidden_size, config.moe_intermediate_size
    return {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}


def text_parameters(config: TextConfig) -> int:
    """Weights of the text model, selection biases included, INT4 scales not."""
    return sum(spec.parameters for spec in text_tensors(config))


def active_parameters(config: TextConfig) -> int:
    """Weights of the text model that one token is multiplied with: its embedding is only looked up."""
    idle = config.n_routed_experts - config.num_experts_per_tok
    expert = sum(rows * columns for rows, columns in expert_shapes(config).values())
    table = config.vocab_size * config.hidden_size
    return text_parameters(config) - table - len(config.moe_layers) * idle * expert


def vision_tensors(vision: VisionConfig) -> Iterator[TensorSpec]:
    """The vision tower and the projector behind it."""
    width, inner = vision.hidden_size, vision.intermediate_size
    embed = "vision_tower.patch_embed."
    yield TensorSpec(f"{embed}proj.weight", (width, 3, vision.patch_size, vision.patch_size))
    yield TensorSpec(f"{embed}proj.bias", (width,))
    yield TensorSpec(f"{embed}pos_emb.weight", (vision.pos_emb_height, vision.pos_emb_width, width))
    for index in range(vision.num_hidden_layers):
        block = f"vision_tower.encoder.blocks.{index}."
        yield from _norm(f"{block}norm0", width)
        yield from _norm(f"{block}norm1", width)
        yield from _linear(f"{block}wqkv", 3 * width, width)
        yield from _linear(f"{block}wo", width, width)
        yield from _linear(f"{block}mlp.fc0", inner, width)
        yield from _linear(f"{block}mlp.fc1", width, inner)
    yield from _norm("vision_tower.encoder.final_layernorm", width)
    yield from _norm("mm_projector.pre_norm", width)
    merged = width * vision.merge_height * vision.merge_width
    yield from _linear("mm_projector.proj.0", merged, merged)
    yield from _linear("mm_projector.proj.2", vision.text_hidden_size, merged)


def _norm(name: str, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (width,))
    yield TensorSpec(f"{name}.bias", (width,))


def _linear(name: str, rows: int, columns: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (rows, columns))
    yield TensorSpec(f"{name}.bias", (rows,))


def _layer(config: TextConfig, index: int) -> Iterator[TensorSpec]:
    prefix = f"model.layers.{index}."
    hidden = config.hidden_size
    yield TensorSpec(f"{prefix}input_layernorm.weight", (hidden,))
    yield TensorSpec(f"{prefix}post_attention_layernorm.weight", (hidden,))
    yield from _attention(config, f"{prefix}self_attn.")
    if not config.is_moe(index):
        yield from _mlp(f"{prefix}mlp.", hidden, config.intermediate_size)
        return
    yield TensorSpec(f"{prefix}mlp.gate.weight", (config.n_routed_experts, hidden))
    yield TensorSpec(f"{prefix}mlp.gate.e_score_correction_bias", (config.n_routed_experts,), "F32")
    shared = config.moe_intermediate_size * config.n_shared_experts
    yield from _mlp(f"{prefix}mlp.shared_experts.", hidden, shared)
    for expert in range(config.n_routed_experts):
        yield from expert_tensors(config, f"{prefix}mlp.experts.{expert}.")


def _attention(config: TextConfig, prefix: str) -> Iterator[TensorSpec]:
    heads, hidden, rank = config.num_attention_heads, config.hidden_size, config.q_lora_rank
    if rank is None:
        yield TensorSpec(f"{prefix}q_proj.weight", (heads * config.qk_head_dim, hidden))
    else:
        yield TensorSpec(f"{prefix}q_a_proj.weight", (rank, hidden))
        yield TensorSpec(f"{prefix}q_a_layernorm.weight", (rank,))
        yield TensorSpec(f"{prefix}q_b_proj.weight", (heads * config.qk_head_dim, rank))
    yield TensorSpec(f"{prefix}kv_a_proj_with_mqa.weight", (config.latent_width, hidden))
    yield TensorSpec(f"{prefix}kv_a_layernorm.weight", (config.kv_lora_rank,))
    key_and_value = config.qk_nope_head_dim + config.v_head_dim
    yield TensorSpec(f"{prefix}kv_b_proj.weight", (heads * key_and_value, config.kv_lora_rank))
    yield TensorSpec(f"{prefix}o_proj.weight", (hidden, heads * config.v_head_dim))


def _mlp(prefix: str, hidden: int, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{prefix}gate_proj.weight", (width, hidden))
    yield TensorSpec(f"{prefix}up_proj.weight", (width, hidden))
    yield TensorSpec(f"{prefix}down_proj.weight", (hidden, width))


def _matrix(config: TextConfig, name: str, shape: tuple[int, int]) -> Iterator[TensorSpec]:
    if config.quantization is None:
        yield TensorSpec(f"{name}.weight", shape)
        return
    rows, columns = shape
    yield TensorSpec(f"{name}.weight_packed", (rows, columns // 8), "I32")
    yield TensorSpec(f"{name}.weight_scale", (rows, columns // config.quantization.group_size))
    yield TensorSpec(f"{name}.weight_shape", (2,), "I32")
