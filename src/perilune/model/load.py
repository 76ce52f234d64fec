"""From a checkpoint folder to a text decoder that can run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from perilune.errors import CheckpointError
from perilune.model.checkpoint import Checkpoint
from perilune.model.config import TextConfig, load_config
from perilune.model.content_hash import content_hash
from perilune.model.int4 import dequantise
from perilune.model.layout import expert_shapes, text_parameters
from perilune.model.text import TextDecoder

MAX_LOADED_BYTES = 16 * 1024**3
"""Most bytes of weights that are unpacked into memory. K2.6 itself would need 2,053 GB as BF16: running it
from its packed experts is not in this build, and load_model says so."""
FLOATS = ("BF16", "F16", "F32")


def load_model(
    folder: Path | str,
    dtype: torch.dtype = torch.float32,
    *,
    device: torch.device | str = "cpu",
    latent_norm_eps: float | None = None,
) -> TextDecoder:
    """The decoder in evaluation mode, its weights as `dtype`; INT4 experts are dequantised here.

    `decoder.content_hash` is the hash of what was read. Raises CheckpointError naming file or tensor.
    """
    folder = Path(folder)
    config = load_config(folder, latent_norm_eps=latent_norm_eps)
    _refuse_too_large(config, dtype)
    identity = content_hash(folder)
    checkpoint = Checkpoint.open(folder)
    with torch.device("meta"):
        decoder = TextDecoder(config)
    state = {
        name: _tensor(checkpoint, config, name, tuple(want.shape), dtype).to(device)
        for name, want in decoder.state_dict().items()
    }
    decoder.load_state_dict(state, assign=True)
    decoder.requires_grad_(False).eval()
    decoder.content_hash = identity
    return decoder


def _refuse_too_large(config: TextConfig, dtype: torch.dtype) -> None:
    needed = text_parameters(config) * dtype.itemsize
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
        matrices = [_expert_matrix(checkpoint, config, f"{prefix}.{expert}.", part) for part in parts]
        torch.cat([matrix.to(dtype) for matrix in matrices], out=stacked[expert])
    return stacked


def _expert_matrix(checkpoint: Checkpoint, config: TextConfig, prefix: str, part: str) -> Tensor:
    """One expert's matrix [out, in]. What is stored decides: packed if `weight_packed` is there."""
    rows, columns = expert_shapes(config)[part]
    name = f"{prefix}{part}"
    if f"{name}.weight_packed" not in checkpoint:
        return checkpoint.get(f"{name}.weight", (rows, columns), FLOATS)
    if config.quantization is None:
        raise CheckpointError(
            "is packed, but config.json has no quantization_config",
            field=f"{name}.weight_packed",
            mend="use the config.json that came with the files",
        )
    groups = columns // config.quantization.group_size
    packed = checkpoint.get(f"{name}.weight_packed", (rows, columns // 8), ("I32",))
    scale = checkpoint.get(f"{name}.weight_scale", (rows, groups), ("BF16",))
    stored = checkpoint.get(f"{name}.weight_shape", (2,), ("I32", "I64")).tolist()
    if stored != [rows, columns]:
        raise CheckpointError(
            f"says {stored}, config.json says {[rows, columns]}",
            field=f"{name}.weight_shape",
            mend="use the config.json that came with the files",
        )
    return dequantise(packed, scale)
