"""Which tensors the official checkpoint of a text decoder holds, by name, shape and stored type.

Imports no torch. Names are without the `language_model.` prefix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from perilune.model.config import TextConfig

ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I64": 8}
PACKED_SUFFIXES = ("weight_packed", "weight_scale", "weight_shape")


@dataclass(frozen=True)
class TensorSpec:
    """One tensor as the official checkpoint stores it."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "BF16"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


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
    total = 0
    for spec in text_tensors(config):
        if spec.name.endswith("weight_packed"):
            total += math.prod(spec.shape) * 8
        elif not spec.name.endswith(("weight_scale", "weight_shape")):
            total += math.prod(spec.shape)
    return total


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
