"""Writes a text decoder in the official layout: names, INT4 experts, shards, index, config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perilune.errors import CheckpointError
from perilune.model.checkpoint import DTYPES
from perilune.model.config import CONFIG_NAME, Int4, TextConfig
from perilune.model.content_hash import LIST_NAME, write_list
from perilune.model.headers import INDEX_NAME
from perilune.model.int4 import pack, quantise
from perilune.model.layout import TensorSpec
from perilune.model.names import PREFIX
from perilune.model.shards import write_json, write_shards
from perilune.model.text import TextDecoder

STORED = {dtype: name for name, dtype in DTYPES.items()}
IGNORE = (
    "lm_head",
    "re:.*self_attn.*",
    "re:.*shared_experts.*",
    r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
)
"""Modules that stay BF16, as the official config lists them."""


def write_checkpoint(
    state: Mapping[str, Tensor],
    config: TextConfig,
    folder: Path,
    *,
    shard_bytes: int = 10 * 1000**3,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `state` (a TextDecoder's state_dict) to `folder`, experts as config.quantization says.

    Weights are rounded to BF16, the selection bias stays F32. `extra` are top-level entries of
    config.json (media ids, say). An older checkpoint in the folder is replaced; the index comes last
    but for the list of hashes, and without it a folder is not a checkpoint.
    Raises CheckpointError when the state is not that of a decoder of this config, or not finite.
    """
    _check_state(state, config)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (folder / LIST_NAME, folder / INDEX_NAME, *folder.glob("model-*-of-*.safetensors")):
        stale.unlink(missing_ok=True)
    tensors = dict(official_tensors(state, config))
    specs = [TensorSpec(name, tuple(one.shape), STORED[one.dtype]) for name, one in tensors.items()]
    write_json(folder / CONFIG_NAME, official_config(config) | dict(extra or {}))
    write_shards(folder, specs, lambda spec: (tensors[spec.name],), shard_bytes=shard_bytes)
    write_list(folder)


def official_tensors(state: Mapping[str, Tensor], config: TextConfig) -> Iterator[tuple[str, Tensor]]:
    """(official name with prefix, tensor) for every tensor of the checkpoint, in the state's order."""
    for name, tensor in state.items():
        prefix, _, last = name.rpartition(".")
        if name.endswith("e_score_correction_bias"):
            yield f"{PREFIX}{name}", tensor.detach().float().contiguous()
        elif not prefix.endswith(".experts"):
            yield f"{PREFIX}{name}", tensor.detach().to(torch.bfloat16).contiguous()
        else:
            parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
            for expert, stacked in enumerate(tensor.detach()):
                for part, matrix in zip(parts, stacked.chunk(len(parts)), strict=True):
                    named = f"{PREFIX}{prefix}.{expert}.{part}"
                    yield from _expert_matrix(named, matrix, config.quantization)


def official_config(config: TextConfig) -> dict[str, Any]:
    """config.json of the wrapped form, from which parse_config makes `config` again."""
    text: dict[str, Any] = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "kimi_k2",
        "hidden_act": "silu",
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "n_group": 1,
        "topk_group": 1,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "num_key_value_heads": config.num_attention_heads,
        "num_nextn_predict_layers": 0,
        "dtype": "bfloat16",
    }
    apart = ("yarn", "quantization", "latent_norm_eps")
    text |= {name: value for name, value in vars(config).items() if name not in apart}
    text["rope_scaling"] = {"type": "yarn", **vars(config.yarn)} if config.yarn else None
    if config.quantization:
        text["quantization_config"] = quantization_document(config.quantization)
    return {
        "architectures": ["KimiK25ForConditionalGeneration"],
        "model_type": "kimi_k25",
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "text_config": text,
    }


def _check_state(state: Mapping[str, Tensor], config: TextConfig) -> None:
    with torch.device("meta"):
        want = {name: tensor.shape for name, tensor in TextDecoder(config).state_dict().items()}
    for name in sorted(want.keys() ^ state.keys()):
        problem = "missing from the state" if name in want else "not a tensor of this config"
        raise CheckpointError(problem, field=name, mend="write the state of the decoder that has this config")
    for name, tensor in state.items():
        if tensor.shape != want[name]:
            raise CheckpointError(
                f"has shape {list(tensor.shape)}, the config says {list(want[name])}",
                field=name,
                mend="write the state of the decoder that has this config",
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError("holds NaN or infinity", field=name, mend="go back to an earlier state")


def _expert_matrix(name: str, matrix: Tensor, packing: Int4 | None) -> Iterator[tuple[str, Tensor]]:
    if packing is None:
        yield f"{name}.weight", matrix.to(torch.bfloat16).contiguous()
        return
    values, scale = quantise(matrix, packing.group_size)
    yield f"{name}.weight_packed", pack(values)
    yield f"{name}.weight_scale", scale
    yield f"{name}.weight_shape", torch.tensor(matrix.shape, dtype=torch.int32)


def quantization_document(packing: Int4 | None = None) -> dict[str, Any]:
    """The `quantization_config` entry; without a packing, the official one."""
    packing = packing or Int4()
    weights = {
        "actorder": None,
        "dynamic": False,
        "group_size": packing.group_size,
        "num_bits": 4,
        "observer": "minmax",
        "strategy": "group",
        "symmetric": True,
        "type": "int",
    }
    group = {
        "input_activations": None,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": weights,
    }
    return {
        "config_groups": {"group_0": group},
        "format": "pack-quantized",
        "ignore": list(packing.ignore or IGNORE),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }
