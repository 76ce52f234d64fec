"""INT4 weights as the official checkpoint packs them (compressed-tensors, `pack-quantized`).

`weight_packed[r, w]` is an int32 that holds columns 8w .. 8w+7 of row r, column 8w+i in bits 4i..4i+3.
A stored nibble is q + 8 with q in -8..7; there is no zero point. `weight_scale[r, g]` is the BF16
scale of columns group*g .. group*g + group-1, and the weight is q * scale, rounded to BF16.
"""

from __future__ import annotations

import torch
from torch import Tensor

PER_WORD = 8
LOWEST, HIGHEST = -8, 7


def pack(values: Tensor) -> Tensor:
    """values [..., columns] of q in -8..7 -> int32 [..., columns / 8]."""
    nibbles = _by(PER_WORD, values.to(torch.int64) - LOWEST)
    shifts = torch.arange(PER_WORD, device=values.device) * 4
    words = (nibbles << shifts).sum(dim=-1)
    # The top nibble may set bit 31: wrap into the signed range before narrowing.
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack(packed: Tensor) -> Tensor:
    """int32 [..., words] -> int8 q in -8..7, [..., words * 8]."""
    # Little-endian: the low nibble of a byte is the earlier column.
    raw = packed.contiguous().view(torch.uint8)
    nibbles = torch.stack((raw & 0xF, raw >> 4), dim=-1).flatten(-2)
    return nibbles.view(torch.int8) + LOWEST


def dequantise(packed: Tensor, scale: Tensor) -> Tensor:
    """packed int32 [..., in / 8], scale BF16 [..., in / group] -> weights BF16 [..., in]."""
    return _scaled(unpack(packed), scale)


def quantise(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """weight [..., in] -> q int8 [..., in] and scale BF16 [..., in / group_size].

    Symmetric min-max: scale = bf16(max |w| / 7.5) per group, q = round(w / scale), half to even.
    """
    groups = _by(group_size, weight.float())
    scale = (groups.abs().amax(dim=-1) / 7.5).to(torch.bfloat16)
    # A group of zeros has any scale; zero would divide by zero here and in every reader that divides.
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    values = (groups / scale.float()[..., None]).round().clamp(LOWEST, HIGHEST)
    return values.to(torch.int8).flatten(-2), scale


def requantise(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """As quantise, but groups that were INT4 before get scales that give exactly the same weights again.

    A group's largest weight is k * scale for a k in 1..8; each is tried, with the neighbours that the
    rounding to BF16 may have moved it by. Groups that no scale gives exactly are quantised anew.
    weight [rows, in] -> q int8 [rows, in], scale BF16 [rows, in / group_size].
    """
    values, scale = quantise(weight, group_size)
    groups = _by(group_size, weight.float()).reshape(-1, group_size)
    q, s = values.view(-1, group_size), scale.view(-1).float()
    left = (~_gives(q, s, groups)).nonzero().flatten()
    for steps in range(8, 0, -1):
        near = (groups[left].abs().amax(dim=-1) / steps).to(torch.bfloat16)
        for nudge in (0, -1, 1):
            tried = (near.view(torch.int16) + nudge).view(torch.bfloat16).float()
            for sign in (1, -1):
                candidate = (groups[left] * sign / tried[:, None]).round().clamp(LOWEST, HIGHEST)
                fits = candidate.to(torch.int8)
                exact = _gives(fits, tried * sign, groups[left])
                q[left[exact]], s[left[exact]] = fits[exact], tried[exact] * sign
                left, near, tried = left[~exact], near[~exact], tried[~exact]
            if not len(left):
                return values, s.to(torch.bfloat16).view(scale.shape)
    return values, s.to(torch.bfloat16).view(scale.shape)


def _gives(values: Tensor, scale: Tensor, want: Tensor) -> Tensor:
    """[n] bool: whether q [n, group] times its scale [n], rounded to BF16, is exactly `want`."""
    return ((values.float() * scale[:, None]).to(torch.bfloat16).float() == want).all(dim=-1)


def fake_quantise(weight: Tensor, group_size: int) -> Tensor:
    """The weight as INT4 would store it, in weight's dtype; its gradient passes straight through."""
    with torch.no_grad():
        stored = _scaled(*quantise(weight, group_size)).to(weight.dtype)
    # Exactly `stored`: the difference is zero, only its gradient is not.
    return stored + (weight - weight.detach())


def _scaled(values: Tensor, scale: Tensor) -> Tensor:
    groups = _by(values.shape[-1] // scale.shape[-1], values.float())
    return (groups * scale.float()[..., None]).flatten(-2).to(torch.bfloat16)


def _by(size: int, x: Tensor) -> Tensor:
    """[..., columns] -> [..., columns / size, size]"""
    return x.reshape(*x.shape[:-1], -1, size)
