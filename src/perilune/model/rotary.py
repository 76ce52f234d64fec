"""Rotary positions with YaRN stretching.

Dimensions lie in interleaved pairs (x0, x1), (x2, x3), ...; each pair is one complex number that a
position turns by its own angle. Applying this as two halves gives plausible-looking garbage.
Source: YaRN (arXiv 2309.00071) as in DeepSeek-V3 and K2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from perilune.model.config import TextConfig, Yarn


def frequencies(config: TextConfig) -> Tensor:
    """Radians per position, F32 [qk_rope_head_dim / 2], one for each pair.

    The official code works in F32 from the first step, and at position 200,000 the last bit of a
    frequency is a visible angle: the same steps in the same order, so that the bits are the same.
    """
    width, yarn = config.qk_rope_head_dim, config.yarn
    pairs = torch.arange(width // 2, dtype=torch.float32, device="cpu")
    slowness = config.rope_theta ** (2 * pairs / width)
    if yarn is None:
        return 1.0 / slowness
    low, high = _stretched_range(config, yarn)
    # 1: turns often enough to be kept; 0: so slow that it must be stretched.
    kept = 1 - ((pairs - low) / (high - low)).clamp(0, 1)
    return 1.0 / (yarn.factor * slowness) * (1 - kept) + 1.0 / slowness * kept


def _stretched_range(config: TextConfig, yarn: Yarn) -> tuple[float, float]:
    """Pairs below the first are kept, those above the second stretched in full, those between are mixed."""
    width, length = config.qk_rope_head_dim, yarn.original_max_position_embeddings

    def pair_turning(turns: float) -> float:
        """The (fractional) pair that makes so many full turns within the original context."""
        return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_turning(yarn.beta_fast)), 0)
    high: float = min(math.ceil(pair_turning(yarn.beta_slow)), width - 1)
    return low, high + 0.001 if low == high else high


class Rotary:
    """Holds the frequencies in F32, outside the module tree, so that no cast of the model rounds them."""

    def __init__(self, config: TextConfig) -> None:
        self._frequencies = frequencies(config)
        yarn = config.yarn
        self._magnitude = yarn.magnitude(yarn.mscale) / yarn.magnitude(yarn.mscale_all_dim) if yarn else 1.0

    def turns(self, positions: Tensor) -> Tensor:
        """positions [n] -> complex64 [n, rope / 2], one factor per pair; angles in F32, as officially."""
        if self._frequencies.device != positions.device:
            self._frequencies = self._frequencies.to(positions.device)
        angles = positions.to(torch.float32)[:, None] * self._frequencies
        return torch.complex(angles.cos(), angles.sin()) * self._magnitude


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn x [n, ..., rope] by turns [n, rope / 2]; same shape and dtype, computed in F32."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    turns = turns.view(len(turns), *(1 for _ in x.shape[1:-1]), -1)
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
