"""A checkpoint's text decoder as a GGUF file in F32, so that llama.cpp can be asked what we are asked.

    python -m scripts.gguf_copy CHECKPOINT COPY.gguf [--template CHAT.jinja]

llama.cpp's architecture for it is `deepseek2`. Its attention works on the latent: `kv_b_proj` is stored as
two tensors, of which the keys' is transposed.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from scripts.byte_pairs import BytePairs, byte_pairs
from torch import Tensor

from perilune.errors import CheckpointError
from perilune.model.config import TextConfig, load_config
from perilune.model.load import load_model

ARCHITECTURE = "deepseek2"
ALIGNMENT = 32
F32, SIGMOID = 0, 2
NORMAL, CONTROL, SHOWN = 1, 3, 4
"""Types of tokens: text, never printed, printed."""

NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
}
OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(folder: Path, copy: Path, template: str = "") -> None:
    """Raises CheckpointError and TokenizerError."""
    config, tokens = load_config(folder), byte_pairs(folder)
    facts = shape_facts(config) | tokenizer_facts(tokens, template)
    with torch.inference_mode():
        tensors = dict(_tensors(load_model(folder, torch.float32).state_dict(), config))
    with copy.open("wb") as file:
        _write(file, {"general.architecture": ARCHITECTURE, "general.name": folder.name} | facts, tensors)


# ---- what is in it


def shape_facts(config: TextConfig) -> dict[str, Any]:
    """The config under llama.cpp's names."""
    facts: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "leading_dense_block_count": config.first_k_dense_replace,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.latent_width,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": config.qk_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "rope.dimension_count": config.qk_rope_head_dim,
        "rope.freq_base": float(config.rope_theta),
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_shared_count": config.n_shared_experts,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_weights_norm": config.norm_topk_prob,
        "expert_gating_func": SIGMOID,
    }
    if config.q_lora_rank is not None:
        facts["attention.q_lora_rank"] = config.q_lora_rank
    if yarn := config.yarn:
        if yarn.mscale != yarn.mscale_all_dim:
            raise CheckpointError(
                "differs from mscale_all_dim, and llama.cpp knows one of them",
                field="rope_scaling.mscale",
                mend="ask another engine",
            )
        facts |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(yarn.factor),
            "rope.scaling.original_context_length": yarn.original_max_position_embeddings,
            "rope.scaling.yarn_log_multiplier": 0.1 * yarn.mscale_all_dim,
            "rope.scaling.yarn_beta_fast": float(yarn.beta_fast),
            "rope.scaling.yarn_beta_slow": float(yarn.beta_slow),
        }
    return {f"{ARCHITECTURE}.{name}": value for name, value in facts.items()}


def tokenizer_facts(tokens: BytePairs, template: str) -> dict[str, Any]:
    kinds = [NORMAL] * tokens.text_tokens
    kinds += [SHOWN if token in tokens.shown else CONTROL for token in range(len(kinds), len(tokens.tokens))]
    facts: dict[str, Any] = {
        "model": "gpt2",
        "pre": "kimi-k2",
        "tokens": list(tokens.tokens),
        "token_type": kinds,
        "bos_token_id": tokens.bos,
        "eos_token_id": tokens.eos,
        "padding_token_id": tokens.pad,
        "add_bos_token": False,
    }
    if tokens.merges:
        facts["merges"] = [" ".join(pair) for pair in tokens.merges]
    named = {f"tokenizer.ggml.{name}": value for name, value in facts.items()}
    return named | ({"tokenizer.chat_template": template} if template else {})


def _tensors(state: Mapping[str, Tensor], config: TextConfig) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in state.items():
        if name in OUTER:
            yield OUTER[name], tensor
            continue
        layer, _, part = name.removeprefix("model.layers.").partition(".")
        for renamed, piece in _layer_tensors(part, tensor, config):
            yield f"blk.{layer}.{renamed}", piece


def _layer_tensors(part: str, tensor: Tensor, config: TextConfig) -> Iterator[tuple[str, Tensor]]:
    if part == "self_attn.kv_b_proj.weight":
        heads = tensor.view(config.num_attention_heads, -1, config.kv_lora_rank)
        keys, values = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        yield "attn_k_b.weight", keys.transpose(1, 2)
        yield "attn_v_b.weight", values
    elif part == "mlp.experts.gate_up_proj":
        gate, up = tensor.chunk(2, dim=1)
        yield "ffn_gate_exps.weight", gate
        yield "ffn_up_exps.weight", up
    else:
        yield NAMES[part], tensor


# ---- the file


def _write(file: BinaryIO, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """GGUF version 3: a head of facts and tensor places, then the tensors, each aligned."""
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts)))
    for name, value in facts.items():
        file.write(_text(name) + _typed(value))
    offset = 0
    for name, tensor in tensors.items():
        sizes = tuple(reversed(tensor.shape))
        file.write(_text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, F32, offset))
        offset += _aligned(tensor.numel() * 4)
    file.write(bytes(-file.tell() % ALIGNMENT))
    for tensor in tensors.values():
        data = tensor.contiguous().float().numpy().tobytes()
        file.write(data + bytes(_aligned(len(data)) - len(data)))


def _aligned(size: int) -> int:
    return size + -size % ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> bytes:
    kind, data = _value(value)
    return struct.pack("<I", kind) + data


def _value(value: Any) -> tuple[int, bytes]:
    """Type number and bytes of a fact."""
    match value:
        case bool():
            return 7, struct.pack("<?", value)
        case int():
            return 4, struct.pack("<I", value)
        case float():
            return 6, struct.pack("<f", value)
        case str():
            return 8, _text(value)
        case [int(), *_]:
            return 9, struct.pack(f"<IQ{len(value)}i", 5, len(value), *value)
        case list():
            return 9, struct.pack("<IQ", 8, len(value)) + b"".join(_text(item) for item in value)
    raise TypeError(f"no fact of a GGUF file: {value!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Copy a checkpoint's text decoder into a GGUF file in F32.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("copy", type=Path)
    parser.add_argument("--template", type=Path, help="chat template to put into it")
    given = parser.parse_args()
    write_gguf(given.checkpoint, given.copy, given.template.read_text() if given.template else "")


if __name__ == "__main__":
    main()
