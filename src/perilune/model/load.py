"""From a checkpoint folder to a text decoder that can run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from perilune.errors import CheckpointError
from perilune.model.checkpoint import Checkpoint
from perilune.model.config import TextConfig, load_config
from perilune.model.content_hash import content_hash
from perilune.model.layout import expert_shapes, text_parameters
from perilune.model.mapped_experts import FLOATS, MappedExperts, expert_matrix
from perilune.model.memory import free_memory, gb
from perilune.model.text import MoE, TextDecoder

Place = Literal["auto", "memory", "files"]
"""Routed experts unpacked in memory, in their files, or there only where memory is too small."""

SPARE = 1.1
"""Free memory must be so many times the weights: something is computed, too. Not a fixed amount, which would
keep a small model from a small machine."""


def load_model(
    folder: Path | str,
    dtype: torch.dtype = torch.float32,
    *,
    device: torch.device | str = "cpu",
    latent_norm_eps: float | None = None,
    experts: Place = "memory",
) -> TextDecoder:
    """The decoder in evaluation mode, its weights as `dtype`; INT4 experts are dequantised here.

    As "files" they stay in their files instead, and a token reads those it is sent to: far less memory, far
    more work per token (model/mapped_experts.py; CPU only).
    `decoder.content_hash` is the hash of what was read. Raises CheckpointError naming file or tensor.
    """
    folder = Path(folder)
    config = load_config(folder, latent_norm_eps=latent_norm_eps)
    checkpoint = Checkpoint.open(folder)  # first: of a folder without weights nobody asks how large they are
    in_files = experts_in_files(config, dtype, experts)
    identity = content_hash(folder)
    with torch.device("meta"):
        decoder = TextDecoder(config)
    if in_files:
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


def experts_in_files(config: TextConfig, dtype: torch.dtype, experts: Place) -> bool:
    """Whether routed experts stay in their files. Raises CheckpointError where the weights that must lie in
    memory do not fit into what is free now."""
    free = free_memory()
    whole, rest = resident_bytes(config, dtype)
    if free is None or whole * SPARE <= free:
        return experts == "files"
    if experts != "memory" and rest * SPARE <= free:
        return True
    needed, mends = whole if experts == "memory" else rest, ["free memory"]
    if dtype == torch.float32:
        mends.append('halve it (dtype = "bfloat16")')
    if experts == "memory" and rest < whole:
        mends.append(f'leave routed experts in their files (experts = "files": {gb(rest)})')
    raise CheckpointError(
        f"needs {gb(needed)} of memory as {str(dtype).removeprefix('torch.')} and a tenth to spare, "
        f"{gb(free)} is free",
        field="checkpoint",
        mend=", ".join([*mends, "or serve it with vLLM or SGLang and connect its URL"]),
    )


def resident_bytes(config: TextConfig, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of weights in memory: with routed experts unpacked, and with those in their files."""
    whole = text_parameters(config)
    expert = sum(rows * columns for rows, columns in expert_shapes(config).values())
    routed = len(config.moe_layers) * config.n_routed_experts * expert
    return whole * dtype.itemsize, (whole - routed) * dtype.itemsize


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
