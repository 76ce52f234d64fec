"""Rotary positions with YaRN stretching.

Dimensions lie in interleaved pairs (x0, x1), (x2, x3), ...; each pair is one complex number that a
position turns by its own angle. Applying this as two halves gives plausible-looking garbage.
Source: YaRN (arXiv 2309.00071) as in DeepSeek-V3 and K2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from perilune.model.config import TextConfig


def frequencies(config: TextConfig) -> list[float]:
    """Angle in radians per position, for each of the qk_rope_head_dim / 2 pairs."""
    width, theta, yarn = config.qk_rope_head_dim, config.rope_theta, config.yarn
    base = [theta ** (-2 * pair / width) for pair in range(width // 2)]
    if yarn is None:
        return base

    def pair_turning(turns: float) -> float:
        """The (fractional) pair that makes so many full turns within the original context."""
        length = yarn.original_max_position_embeddings
        return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(yarn.beta_fast)), 0)
    high: float = min(math.ceil(pair_turning(yarn.beta_slow)), width - 1)
    if low == high:
        high += 0.001
    mixed = []
    for pair, fast in enumerate(base):
        # 0: turns often enough to be kept; 1: so slow that it must be stretched.
        stretch = min(max((pair - low) / (high - low), 0.0), 1.0)
        mixed.append(fast * (1 - stretch) + fast / yarn.factor * stretch)
    return mixed


class Rotary:
    """Holds the frequencies in F64, outside the module tree, so that no cast of the model rounds them."""

    def __init__(self, config: TextConfig) -> None:
        self._frequencies = torch.tensor(frequencies(config), dtype=torch.float64, device="cpu")
        yarn = config.yarn
        self._magnitude = yarn.magnitude(yarn.mscale) / yarn.magnitude(yarn.mscale_all_dim) if yarn else 1.0

    def turns(self, positions: Tensor) -> Tensor:
        """positions [n] -> complex64 [n, rope / 2], one factor per pair."""
        if self._frequencies.device != positions.device:
            self._frequencies = self._frequencies.to(positions.device)
        angles = positions.to(torch.float64)[:, None] * self._frequencies
        return torch.polar(torch.full_like(angles, self._magnitude), angles).to(torch.complex64)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn x [n, ..., rope] by turns [n, rope / 2]; same shape and dtype, computed in F32."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    turns = turns.view(len(turns), *(1 for _ in x.shape[1:-1]), -1)
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
