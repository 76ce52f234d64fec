"""Shapes known by name, as config.json documents: for whoever makes a checkpoint without a file at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from perilune.model.config import Int4, TextConfig, Yarn
from perilune.model.tiny import TINY
from perilune.model.vision_config import VisionConfig
from perilune.model.writer import official_config

K26 = TextConfig(
    vocab_size=163840,
    hidden_size=7168,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    num_hidden_layers=61,
    num_attention_heads=64,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    n_routed_experts=384,
    num_experts_per_tok=8,
    routed_scaling_factor=2.827,
    yarn=Yarn(factor=64.0, original_max_position_embeddings=4096),
    max_position_embeddings=262144,
    bos_token_id=163584,
    eos_token_id=163586,
    pad_token_id=163839,
    quantization=Int4(group_size=32),
)
K26_VISION = VisionConfig(
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    patch_size=14,
    pos_emb_height=64,
    pos_emb_width=64,
    pos_emb_time=4,
    merge_height=2,
    merge_width=2,
    text_hidden_size=7168,
)
TINY_VISION = VisionConfig(
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    patch_size=14,
    pos_emb_height=8,
    pos_emb_width=8,
    pos_emb_time=4,
    merge_height=2,
    merge_width=2,
    text_hidden_size=TINY.hidden_size,
)


def vision_document(vision: VisionConfig) -> dict[str, Any]:
    """The `vision_config` entry from which parse_vision makes `vision` again."""
    return {
        "vt_hidden_size": vision.hidden_size,
        "vt_intermediate_size": vision.intermediate_size,
        "vt_num_hidden_layers": vision.num_hidden_layers,
        "vt_num_attention_heads": vision.num_attention_heads,
        "patch_size": vision.patch_size,
        "init_pos_emb_height": vision.pos_emb_height,
        "init_pos_emb_width": vision.pos_emb_width,
        "init_pos_emb_time": vision.pos_emb_time,
        "merge_kernel_size": [vision.merge_height, vision.merge_width],
        "merge_type": "sd2_tpool",
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": "patchmerger",
        "pos_emb_type": "divided_fixed",
        "projector_hidden_act": "gelu",
        "projector_ln_eps": vision.projector_ln_eps,
        "text_hidden_size": vision.text_hidden_size,
        "video_attn_type": "spatial_temporal",
    }


def _k26() -> dict[str, Any]:
    media = {
        "media_placeholder_token_id": 163605,
        "video_placeholder": "<|kimi_k25_video_placeholder|>",
        "use_unified_vision_chunk": True,
    }
    return official_config(K26) | media | {"vision_config": vision_document(K26_VISION)}


def _tiny() -> dict[str, Any]:
    place = TINY.vocab_size - 5
    return (
        official_config(TINY)
        | {"media_placeholder_token_id": place}
        | {"vision_config": vision_document(TINY_VISION)}
    )


SHAPES: Mapping[str, Callable[[], dict[str, Any]]] = {"k2.6": _k26, "tiny": _tiny}
"""Name -> a new config.json document."""
