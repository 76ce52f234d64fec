"""RMSNorm: x / sqrt(mean(x^2) + eps) * weight, the quotient computed in F32.

`rms_norm` is the interface, `rms_norm_definition` the formula. When gradients are wanted in F32 or BF16,
the derivative is written by hand: less than half the time of the automatic one, which remembers every step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., d], weight [d] -> [..., d] in x's dtype; differentiable."""
    if x.dtype not in (torch.float32, torch.bfloat16):
        return rms_norm_definition(x, weight, eps)
    if not torch.is_grad_enabled():
        if x.dtype == torch.bfloat16:
            return rms_norm_definition(x, weight, eps)
        return F.rms_norm(x, weight.shape, weight, eps)
    out: Tensor = _Differentiated.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


def rms_norm_definition(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    mean_square = wide.square().mean(dim=-1, keepdim=True)
    return weight * (wide * (mean_square + eps).rsqrt()).to(x.dtype)


class _Differentiated(torch.autograd.Function):
    """Everything in F32 inside: products of BF16 with F32 take a slow road on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse = wide.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
        normal = (wide * inverse).to(x.dtype)
        ctx.save_for_backward(normal, inverse, weight)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normal, inverse, weight = ctx.saved_tensors
        narrow = normal.dtype
        grad, normal, weight = grad.float(), normal.float(), weight.float()
        product = grad * normal
        # d out / d x = inverse * (g w - normal * mean(g w normal))
        pull = (product @ weight)[..., None].div_(-normal.shape[-1])
        grad_x = torch.addcmul(grad * weight, normal, pull).mul_(inverse)
        return grad_x.to(narrow), product.flatten(0, -2).sum(dim=0).to(narrow), None
