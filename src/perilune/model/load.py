"""From a checkpoint folder to a text decoder that can run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from perilune.errors import CheckpointError
from perilune.model.checkpoint import Checkpoint
from perilune.model.config import TextConfig, load_config
from perilune.model.content_hash import content_hash
from perilune.model.layout import expert_shapes, text_parameters
from perilune.model.mapped_experts import FLOATS, MappedExperts, expert_matrix
from perilune.model.text import MoE, TextDecoder

MAX_LOADED_BYTES = 16 * 1024**3
"""Most bytes of weights that are unpacked into memory. K2.6 itself would need 2,053 GB as BF16: running it
from its packed experts is not in this build, and load_model says so."""


def load_model(
    folder: Path | str,
    dtype: torch.dtype = torch.float32,
    *,
    device: torch.device | str = "cpu",
    latent_norm_eps: float | None = None,
    experts_in_place: bool = False,
) -> TextDecoder:
    """The decoder in evaluation mode, its weights as `dtype`; INT4 experts are dequantised here.

    With `experts_in_place` they stay in their files instead, and a token reads those it is sent to: far
    less memory, far more work per token (model/mapped_experts.py; CPU only).
    `decoder.content_hash` is the hash of what was read. Raises CheckpointError naming file or tensor.
    """
    folder = Path(folder)
    config = load_config(folder, latent_norm_eps=latent_norm_eps)
    _refuse_too_large(config, dtype, experts_in_place)
    identity = content_hash(folder)
    checkpoint = Checkpoint.open(folder)
    with torch.device("meta"):
        decoder = TextDecoder(config)
    if experts_in_place:
        layers = [module for module in decoder.modules() if isinstance(module, MoE)]
        for moe, index in zip(layers, config.moe_layers, strict=True):
            moe.experts = MappedExperts(checkpoint, config, index)
    state = {
        name: _tensor(checkpoint, config, name, tuple(want.shape), dtype).to(device)
        for name, want in decoder.state_dict().items()
    }
    decoder.load_state_dict(state, assign=True)
    decoder.requires_grad_(False).eval()
    decoder.content_hash = identity
    return decoder


def load_moe(checkpoint: Checkpoint, config: TextConfig, layer: int, dtype: torch.dtype) -> MoE:
    """One expert layer alone: router and shared expert in memory, routed experts in their files."""
    with torch.device("meta"):
        moe = MoE(config)
    moe.experts = MappedExperts(checkpoint, config, layer)
    prefix = f"model.layers.{layer}.mlp."
    state = {
        name: _tensor(checkpoint, config, f"{prefix}{name}", tuple(want.shape), dtype)
        for name, want in moe.state_dict().items()
    }
    moe.load_state_dict(state, assign=True)
    return moe.requires_grad_(False).eval()


def _refuse_too_large(config: TextConfig, dtype: torch.dtype, experts_in_place: bool) -> None:
    parameters = text_parameters(config)
    if experts_in_place:
        expert = sum(rows * columns for rows, columns in expert_shapes(config).values())
        parameters -= len(config.moe_layers) * config.n_routed_experts * expert
    needed = parameters * dtype.itemsize
    if needed > MAX_LOADED_BYTES:
        raise CheckpointError(
            f"needs {needed / 1e9:,.0f} GB as {str(dtype).removeprefix('torch.')}, "
            f"this build unpacks at most {MAX_LOADED_BYTES / 1e9:,.0f} GB",
            field="checkpoint",
            mend="serve it with vLLM or SGLang and connect its URL, or use a smaller checkpoint",
        )


def _tensor(
    checkpoint: Checkpoint, config: TextConfig, name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """One entry of the decoder's state from the checkpoint, always a copy that the decoder owns."""
    if name.endswith("e_score_correction_bias"):
        return checkpoint.get(name, shape, FLOATS).to(torch.float32, copy=True)
    prefix, _, last = name.rpartition(".")
    if not prefix.endswith(".experts") or "shared" in prefix:
        return checkpoint.get(name, shape, FLOATS).to(dtype, copy=True)
    stacked = torch.empty(shape, dtype=dtype)
    parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
    for expert in range(config.n_routed_experts):
        matrices = [expert_matrix(checkpoint, config, f"{prefix}.{expert}.", part) for part in parts]
        torch.cat([matrix.to(dtype) for matrix in matrices], out=stacked[expert])
    return stacked
