"""Routed experts that stay in the checkpoint's files: a token reads and unpacks only those it is sent to.

One matrix is unpacked at a time, so the memory does not grow with the number of experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perilune.errors import CheckpointError
from perilune.model.checkpoint import RESIDENT_BYTES, Checkpoint
from perilune.model.config import TextConfig
from perilune.model.int4 import dequantise
from perilune.model.kernels.fixed_tiles import routed_experts_fixed
from perilune.model.layout import expert_shapes

FLOATS = ("BF16", "F16", "F32")


class MappedExperts(nn.Module):
    """Stands where model/text.py has Experts; computes the same, from the files."""

    def __init__(self, checkpoint: Checkpoint, config: TextConfig, layer: int) -> None:
        super().__init__()
        self._checkpoint = checkpoint
        self._config = config
        self._prefix = f"model.layers.{layer}.mlp.experts."
        self.fixed_tiles = False

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x [n, hidden], chosen and weights [n, k] -> [n, hidden]. Raises CheckpointError."""
        if self.fixed_tiles:
            return routed_experts_fixed(x, chosen, weights, self._expert)
        out = torch.zeros_like(x)
        for expert in sorted(set(chosen.flatten().tolist())):
            rows, places = (chosen == expert).nonzero(as_tuple=True)
            answer = self._expert(x[rows], expert)
            out.index_add_(0, rows, answer * weights[rows, places, None].to(answer.dtype))
        return out

    def _expert(self, x: Tensor, expert: int) -> Tensor:
        inner = F.silu(self._times(x, expert, "gate_proj")) * self._times(x, expert, "up_proj")
        answer = self._times(inner, expert, "down_proj")
        self._checkpoint.forget(RESIDENT_BYTES)
        return answer

    def _times(self, x: Tensor, expert: int, part: str) -> Tensor:
        matrix = expert_matrix(self._checkpoint, self._config, f"{self._prefix}{expert}.", part)
        return F.linear(x, matrix.to(x.dtype))


def expert_matrix(checkpoint: Checkpoint, config: TextConfig, prefix: str, part: str) -> Tensor:
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
