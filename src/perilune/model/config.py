"""The text decoder's shape, read from the official config.json. Imports no torch.

Source of the field names: config.json of Kimi K2.5/K2.6 (`kimi_k25` wrapper around a `kimi_k2`
text_config) and of DeepSeek-V3, whose architecture K2 shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perilune.errors import CheckpointError
from perilune.model.config_fields import Fields
from perilune.model.json_files import read_object

CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = 16 * 1024 * 1024
MAX_LAYERS = 4096
MAX_EXPERTS = 200_000
"""Over all layers; K2.6 has 23,040. A config that claims more is damaged, and would be listed for hours."""
WRAPPED_TYPES = ("kimi_k25",)
BARE_TYPES = ("kimi_k2", "deepseek_v3")
LEAST_THETA = 1.001
LEAST_BETA = 1e-6
"""Logarithms and quotients of these are taken."""


@dataclass(frozen=True)
class Yarn:
    """Rotary scaling of the `rope_scaling` entry; lengths are in tokens."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0

    def magnitude(self, mscale: float) -> float:
        """The attention temperature correction for one mscale entry (1.0 without stretching)."""
        if self.factor <= 1.0 or mscale == 0.0:
            return 1.0
        return 0.1 * mscale * math.log(self.factor) + 1.0


@dataclass(frozen=True)
class Int4:
    """Routed experts are packed: symmetric 4-bit integers, one BF16 scale per `group_size` columns."""

    group_size: int = 32
    ignore: tuple[str, ...] = ()
    """Module names (or `re:` patterns) the checkpoint says are not packed."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Everything the text decoder needs to know; field names are those of the official config."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    """Width of the dense feed-forward layers."""
    moe_intermediate_size: int
    """Width of one expert."""
    num_hidden_layers: int
    num_attention_heads: int
    kv_lora_rank: int
    """Width of the latent that stands for keys and values in the cache."""
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_routed_experts: int
    num_experts_per_tok: int
    q_lora_rank: int | None = None
    """None: queries come from one matrix (`q_proj`) instead of two."""
    n_shared_experts: int = 1
    first_k_dense_replace: int = 1
    """The first so many layers are dense, the others hold experts."""
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = True
    rms_norm_eps: float = 1e-5
    latent_norm_eps: float | None = None
    """Epsilon of q_a_layernorm and kv_a_layernorm; None means rms_norm_eps. transformers uses 1e-6."""
    rope_theta: float = 50000.0
    yarn: Yarn | None = None
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    quantization: Int4 | None = None

    def __post_init__(self) -> None:
        _check_consistency(self)

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_width(self) -> int:
        """Values cached per token and layer: the latent and the shared rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def latent_eps(self) -> float:
        return self.rms_norm_eps if self.latent_norm_eps is None else self.latent_norm_eps

    @property
    def softmax_scale(self) -> float:
        """Multiplies query-key products; YaRN raises it by the square of its magnitude."""
        magnitude = self.yarn.magnitude(self.yarn.mscale_all_dim) if self.yarn else 1.0
        return float(self.qk_head_dim**-0.5 * magnitude**2)

    def is_moe(self, layer: int) -> bool:
        return layer >= self.first_k_dense_replace

    @property
    def moe_layers(self) -> range:
        return range(min(self.first_k_dense_replace, self.num_hidden_layers), self.num_hidden_layers)


def load_config(folder: Path, *, latent_norm_eps: float | None = None) -> TextConfig:
    """Read `folder/config.json`.

    Raises CheckpointError naming the field and the mend.
    """
    return parse_config(read_config(folder), latent_norm_eps=latent_norm_eps)


def read_config(folder: Path, name: str = CONFIG_NAME) -> dict[str, Any]:
    """The config as it stands. Raises CheckpointError naming the file and the mend."""
    try:
        return read_object(folder / name, MAX_CONFIG_BYTES)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no {name}", field=str(folder), mend="give the folder that holds the checkpoint"
        ) from error


def parse_config(document: Mapping[str, Any], *, latent_norm_eps: float | None = None) -> TextConfig:
    """The text decoder's config from a parsed config.json, wrapped (`text_config`) or bare.

    Raises CheckpointError naming the field and the mend.
    """
    text = _text_section(document)
    _refuse_other_architectures(text)
    experts = text.whole("n_routed_experts")
    return TextConfig(
        vocab_size=text.whole("vocab_size"),
        hidden_size=text.whole("hidden_size"),
        intermediate_size=text.whole("intermediate_size"),
        moe_intermediate_size=text.whole("moe_intermediate_size"),
        num_hidden_layers=text.whole("num_hidden_layers"),
        num_attention_heads=text.whole("num_attention_heads"),
        kv_lora_rank=text.whole("kv_lora_rank"),
        q_lora_rank=text.whole("q_lora_rank") if text.given("q_lora_rank") else None,
        qk_nope_head_dim=text.whole("qk_nope_head_dim"),
        qk_rope_head_dim=text.whole("qk_rope_head_dim"),
        v_head_dim=text.whole("v_head_dim"),
        n_routed_experts=experts,
        num_experts_per_tok=text.whole("num_experts_per_tok"),
        n_shared_experts=text.whole("n_shared_experts"),
        first_k_dense_replace=text.whole("first_k_dense_replace", least=0),
        routed_scaling_factor=text.real("routed_scaling_factor"),
        norm_topk_prob=text.boolean("norm_topk_prob"),
        rms_norm_eps=text.real("rms_norm_eps"),
        latent_norm_eps=latent_norm_eps,
        rope_theta=_rope_theta(text),
        yarn=_yarn(text),
        max_position_embeddings=text.whole("max_position_embeddings"),
        initializer_range=text.real("initializer_range", default=0.02),
        bos_token_id=text.optional_id("bos_token_id"),
        eos_token_id=text.optional_id("eos_token_id"),
        pad_token_id=text.optional_id("pad_token_id"),
        quantization=_quantization(text, Fields(document, "")),
    )


def _text_section(document: Mapping[str, Any]) -> Fields:
    top = Fields(document, "")
    kind = top.text("model_type")
    if kind in WRAPPED_TYPES:
        text = top.section("text_config")
        inner = text.text("model_type") if text.given("model_type") else BARE_TYPES[0]
        if inner not in BARE_TYPES:
            raise text.wrong(
                "model_type",
                f"{inner!r:.80} is not the text model of {kind}",
                f"it is {' or '.join(BARE_TYPES)}",
            )
        return text
    if kind in BARE_TYPES:
        return top
    raise CheckpointError(
        f"{kind!r:.80} is not a model this build can run",
        field="model_type",
        mend=f"use a checkpoint whose model_type is one of {', '.join(WRAPPED_TYPES + BARE_TYPES)}",
    )


def _refuse_other_architectures(text: Fields) -> None:
    """Fields whose other values would need code that is not here."""
    text.only("hidden_act", "silu")
    text.only("scoring_func", "sigmoid")
    text.only("topk_method", "noaux_tc")
    text.only("moe_layer_freq", 1)
    text.only("n_group", 1)
    text.only("topk_group", 1)
    text.only("attention_bias", False)
    text.only("tie_word_embeddings", False)
    text.only("rope_interleave", True)


def _rope_theta(text: Fields) -> float:
    if text.given("rope_parameters"):
        return text.section("rope_parameters").real("rope_theta", least=LEAST_THETA)
    return text.real("rope_theta", least=LEAST_THETA)


def _yarn(text: Fields) -> Yarn | None:
    # transformers 5 writes the same entry as `rope_parameters`, with theta inside.
    name = "rope_parameters" if text.given("rope_parameters") else "rope_scaling"
    if not text.given(name):
        return None
    rope = text.section(name)
    kind = rope.text("rope_type" if rope.given("rope_type") else "type")
    if kind == "default":
        return None
    if kind != "yarn":
        raise rope.wrong("type", f"{kind!r:.80} is not supported", "only yarn and default are")
    return Yarn(
        factor=rope.real("factor", least=1.0),
        original_max_position_embeddings=rope.whole("original_max_position_embeddings"),
        beta_fast=rope.real("beta_fast", default=32.0, least=LEAST_BETA),
        beta_slow=rope.real("beta_slow", default=1.0, least=LEAST_BETA),
        mscale=rope.real("mscale", default=1.0),
        mscale_all_dim=rope.real("mscale_all_dim", default=0.0),
    )


def _quantization(text: Fields, top: Fields) -> Int4 | None:
    name = "quantization_config"
    holder = next((fields for fields in (text, top) if fields.given(name)), None)
    if holder is None:
        return None
    if top.given(name) and not top.same(name, holder):
        raise top.wrong(
            name, f"contradicts text_config.{name}", "keep the one that the weights are stored by"
        )
    section = holder.section(name)
    section.only("quant_method", "compressed-tensors", required=True)
    section.only("format", "pack-quantized", required=True)
    section.only("kv_cache_scheme", None)
    groups = section.section("config_groups")
    if len(groups.names) != 1:
        raise section.wrong("config_groups", f"has {len(groups.names)} groups", "one is supported")
    group = groups.section(groups.names[0])
    group.only("input_activations", None)
    group.only("output_activations", None)
    weights = group.section("weights")
    weights.only("num_bits", 4, required=True)
    weights.only("type", "int", required=True)
    weights.only("symmetric", True, required=True)
    weights.only("strategy", "group", required=True)
    weights.only("actorder", None)
    return Int4(group_size=weights.whole("group_size"), ignore=section.words("ignore"))


def _check_consistency(config: TextConfig) -> None:
    """Refuse values that contradict each other, whoever made the config."""

    def refuse(field: str, problem: str, mend: str) -> None:
        raise CheckpointError(problem, field=field, mend=mend)

    if config.qk_rope_head_dim % 2:
        refuse("qk_rope_head_dim", "is odd", "rotary positions turn pairs: use an even number")
    if config.num_experts_per_tok > config.n_routed_experts:
        refuse(
            "num_experts_per_tok",
            f"is {config.num_experts_per_tok} of n_routed_experts {config.n_routed_experts}",
            "choose at most as many experts as there are",
        )
    if config.first_k_dense_replace > config.num_hidden_layers:
        refuse(
            "first_k_dense_replace",
            f"is {config.first_k_dense_replace} of num_hidden_layers {config.num_hidden_layers}",
            "it counts layers: at most num_hidden_layers",
        )
    if config.num_hidden_layers > MAX_LAYERS:
        refuse("num_hidden_layers", f"is {config.num_hidden_layers}", f"at most {MAX_LAYERS} are read")
    if len(config.moe_layers) * config.n_routed_experts > MAX_EXPERTS:
        refuse(
            "n_routed_experts",
            f"is {config.n_routed_experts} in each of {len(config.moe_layers)} layers",
            f"at most {MAX_EXPERTS:,} over all layers are read",
        )
    packed = config.quantization
    if packed and packed.group_size % 8:
        refuse("group_size", f"{packed.group_size} is not a multiple of 8", "eight weights share a word")
    for name in ("hidden_size", "moe_intermediate_size") if packed else ():
        width = getattr(config, name)
        if packed and width % packed.group_size:
            refuse(name, f"{width} is not a multiple of group_size {packed.group_size}", "pad the experts")
    yarn = config.yarn
    if yarn and yarn.original_max_position_embeddings > config.max_position_embeddings:
        refuse(
            "rope_scaling.original_max_position_embeddings",
            f"is above max_position_embeddings {config.max_position_embeddings}",
            "it is the length before stretching",
        )
