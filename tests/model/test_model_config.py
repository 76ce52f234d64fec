"""config.json: what is read, and what is refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from perilune.errors import CheckpointError
from perilune.model.config import Int4, TextConfig, Yarn, load_config, parse_config
from perilune.model.layout import text_parameters, text_tensors

K26_TEXT: dict[str, Any] = {
    "model_type": "kimi_k2",
    "vocab_size": 163840,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 64,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 384,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.827,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 64.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "max_position_embeddings": 262144,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 163584,
    "eos_token_id": 163586,
    "pad_token_id": 163839,
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head", "re:.*self_attn.*"],
        "config_groups": {
            "group_0": {
                "input_activations": None,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": {
                    "actorder": None,
                    "group_size": 32,
                    "num_bits": 4,
                    "strategy": "group",
                    "symmetric": True,
                    "type": "int",
                },
            }
        },
    },
}


def k26() -> dict[str, Any]:
    return {"model_type": "kimi_k25", "text_config": copy.deepcopy(K26_TEXT)}


def test_reads_the_k26_config() -> None:
    config = parse_config(k26())
    assert config.num_hidden_layers == 61
    assert config.q_lora_rank == 1536
    assert config.latent_width == 576
    assert config.yarn == Yarn(64.0, 4096, 32.0, 1.0, 1.0, 1.0)
    assert config.quantization == Int4(32, ("lm_head", "re:.*self_attn.*"))
    assert config.eos_token_id == 163586
    assert config.moe_layers == range(1, 61)


def test_softmax_scale_includes_the_yarn_magnitude() -> None:
    assert parse_config(k26()).softmax_scale == pytest.approx(0.14467962580, abs=1e-11)
    bare = copy.deepcopy(K26_TEXT) | {"rope_scaling": None}
    assert parse_config(bare).softmax_scale == pytest.approx(192**-0.5, abs=1e-12)


def test_latent_norm_epsilon_follows_rms_norm_eps_unless_given() -> None:
    assert parse_config(k26()).latent_eps == 1e-5
    assert parse_config(k26(), latent_norm_eps=1e-6).latent_eps == 1e-6


def test_implied_tensors_are_those_of_the_published_checkpoint() -> None:
    """Census of the K2.6 index: 208,550 tensors and 595,148,192,736 bytes, of which the vision tower
    and its projector are 335 tensors and 471,143,920 BF16 values."""
    config = parse_config(k26())
    specs = list(text_tensors(config))
    assert len(specs) + 335 == 208_550
    assert len({spec.name for spec in specs}) == len(specs)
    assert sum(spec.nbytes for spec in specs) + 2 * (416_866_032 + 54_277_888) == 595_148_192_736
    assert text_parameters(config) == 1_026_408_232_448


def test_reads_a_bare_config_with_quantization_at_top_level_and_rope_parameters() -> None:
    bare = copy.deepcopy(K26_TEXT)
    rope = bare.pop("rope_scaling")
    bare |= {"model_type": "deepseek_v3", "q_lora_rank": None}
    del bare["rope_theta"]
    bare["rope_parameters"] = {**rope, "rope_type": rope["type"], "rope_theta": 50000.0}
    config = parse_config(bare)
    assert config.q_lora_rank is None
    assert config.rope_theta == 50000.0
    assert config.yarn == parse_config(k26()).yarn
    wrapped = k26()
    wrapped["quantization_config"] = wrapped["text_config"].pop("quantization_config")
    assert parse_config(wrapped).quantization == parse_config(k26()).quantization


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("hidden_size", "missing", "text_config.hidden_size"),
        ("hidden_size", "7168", "text_config.hidden_size"),
        ("hidden_size", True, "text_config.hidden_size"),
        ("num_hidden_layers", 0, "text_config.num_hidden_layers"),
        ("rms_norm_eps", float("nan"), "text_config.rms_norm_eps"),
        ("norm_topk_prob", 1, "text_config.norm_topk_prob"),
        ("n_group", 8, "text_config.n_group"),
        ("scoring_func", "softmax", "text_config.scoring_func"),
        ("tie_word_embeddings", True, "text_config.tie_word_embeddings"),
        ("qk_rope_head_dim", 63, "qk_rope_head_dim"),
        ("num_experts_per_tok", 400, "num_experts_per_tok"),
        ("first_k_dense_replace", 62, "first_k_dense_replace"),
        ("moe_intermediate_size", 2040, "moe_intermediate_size"),
        ("max_position_embeddings", 1024, "rope_scaling.original_max_position_embeddings"),
        ("rope_scaling.type", "linear", "text_config.rope_scaling.type"),
        ("rope_scaling.factor", "missing", "text_config.rope_scaling.factor"),
        ("model_type", "llama", "text_config.model_type"),
        (
            "quantization_config.kv_cache_scheme",
            {"num_bits": 8},
            "text_config.quantization_config.kv_cache_scheme",
        ),
        ("quantization_config.quant_method", "fp8", "text_config.quantization_config.quant_method"),
        ("quantization_config.format", "float-quantized", "text_config.quantization_config.format"),
        ("quantization_config.config_groups", {}, "text_config.quantization_config.config_groups"),
        (
            "quantization_config.config_groups.group_0.weights.num_bits",
            8,
            "text_config.quantization_config.config_groups.group_0.weights.num_bits",
        ),
        (
            "quantization_config.config_groups.group_0.weights.symmetric",
            "missing",
            "text_config.quantization_config.config_groups.group_0.weights.symmetric",
        ),
    ],
)
def test_refuses_by_name(path: str, value: object, field: str) -> None:
    document = k26()
    *parents, last = path.split(".")
    target = document["text_config"]
    for parent in parents:
        target = target[parent]
    if value == "missing":
        del target[last]
    else:
        target[last] = value
    with pytest.raises(CheckpointError) as caught:
        parse_config(document)
    assert caught.value.field == field
    assert caught.value.mend


def test_unknown_quantisation_is_named() -> None:
    document = k26()
    document["text_config"]["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    with pytest.raises(CheckpointError, match="'fp8' is not supported"):
        parse_config(document)


def test_two_quantisations_are_a_contradiction() -> None:
    document = k26()
    document["quantization_config"] = document["text_config"]["quantization_config"]
    assert parse_config(document).quantization == parse_config(k26()).quantization
    document["quantization_config"] = {"quant_method": "fp8"}
    with pytest.raises(CheckpointError, match=r"^quantization_config: contradicts text_config"):
        parse_config(document)


def test_other_models_are_refused() -> None:
    with pytest.raises(CheckpointError, match="'llama'") as caught:
        parse_config({"model_type": "llama"})
    assert caught.value.field == "model_type"


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff"])
def test_unreadable_config_names_the_file(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_config(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.mend


def test_loads_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(k26()))
    assert load_config(tmp_path) == parse_config(k26())


def test_constructor_checks_too() -> None:
    config = parse_config(k26())
    with pytest.raises(CheckpointError, match="is odd"):
        TextConfig(**{**vars(config), "qk_rope_head_dim": 7})
