"""The vision tower's shape, from the `vision_config` entry of config.json. Imports no torch.

Source of the field names: config.json of Kimi K2.5 and K2.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perilune.errors import CheckpointError
from perilune.model.config import WRAPPED_TYPES, TextConfig
from perilune.model.config_fields import Fields

MAX_BLOCKS = 4096


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """MoonViT-3D and its projector; lengths of the position grid are in patches, of time in frames."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int
    """Edge of a square patch in pixels."""
    pos_emb_height: int
    pos_emb_width: int
    pos_emb_time: int
    merge_height: int
    merge_width: int
    """Patches that the projector makes one token of."""
    text_hidden_size: int
    projector_ln_eps: float = 1e-5


def parse_vision(document: Mapping[str, Any], text: TextConfig) -> VisionConfig | None:
    """The vision tower that a parsed config.json describes; None when it has none.

    Raises CheckpointError naming the field and the mend.
    """
    top = Fields(document, "")
    if top.text("model_type") not in WRAPPED_TYPES or not top.given("vision_config"):
        return None
    vision = top.section("vision_config")
    for name, supported in (
        ("merge_type", "sd2_tpool"),
        ("mm_projector_type", "patchmerger"),
        ("pos_emb_type", "divided_fixed"),
        ("video_attn_type", "spatial_temporal"),
        ("projector_hidden_act", "gelu"),
    ):
        vision.only(name, supported)
    height, width = vision.pair("merge_kernel_size")
    config = VisionConfig(
        hidden_size=vision.whole("vt_hidden_size"),
        intermediate_size=vision.whole("vt_intermediate_size"),
        num_hidden_layers=vision.whole("vt_num_hidden_layers"),
        num_attention_heads=vision.whole("vt_num_attention_heads"),
        patch_size=vision.whole("patch_size"),
        pos_emb_height=vision.whole("init_pos_emb_height"),
        pos_emb_width=vision.whole("init_pos_emb_width"),
        pos_emb_time=vision.whole("init_pos_emb_time"),
        merge_height=height,
        merge_width=width,
        text_hidden_size=vision.whole("text_hidden_size"),
        projector_ln_eps=vision.real("projector_ln_eps", default=1e-5),
    )
    _check_consistency(config, vision, text)
    return config


def _check_consistency(config: VisionConfig, fields: Fields, text: TextConfig) -> None:
    if config.num_hidden_layers > MAX_BLOCKS:
        raise fields.wrong(
            "vt_num_hidden_layers", f"is {config.num_hidden_layers}", f"at most {MAX_BLOCKS} are read"
        )
    if config.hidden_size % (4 * config.num_attention_heads):
        raise fields.wrong(
            "vt_hidden_size",
            f"{config.hidden_size} does not give each of {config.num_attention_heads} heads a multiple of 4",
            "rotary positions turn a pair by the column and a pair by the row",
        )
    if config.text_hidden_size != text.hidden_size:
        raise fields.wrong(
            "text_hidden_size",
            f"is {config.text_hidden_size}, the text model's hidden_size is {text.hidden_size}",
            "restore the official config.json",
        )
    if fields.given("mm_hidden_size") and fields.whole("mm_hidden_size") != config.hidden_size:
        raise CheckpointError(
            f"is not vt_hidden_size {config.hidden_size}",
            field="vision_config.mm_hidden_size",
            mend="restore the official config.json",
        )
