"""Causal attention over whole sequences, keys and values per head; what training runs.

`causal_attention` is the interface. torch's own kernel is the choice everywhere but for F32 on a CPU,
where plain matrix products over blocks of queries (_Blocked) took a third less time when measured.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES_PER_BLOCK = 64


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """q, k [B, H, T, d] and v [B, H, T, dv] -> [B, H, T, dv]; differentiable."""
    if q.device.type == "cpu" and q.dtype == torch.float32:
        out: Tensor = _Blocked.apply(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), scale)  # type: ignore[no-untyped-call]
        return out.view(v.shape)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


def causal_attention_definition(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Every score, the future hidden, softmax in F32."""
    scores = (q @ k.transpose(-1, -2)).float() * scale
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(dim=-1).to(v.dtype) @ v


class _Blocked(torch.autograd.Function):
    """Blocks of queries against their whole past. Keeps the attention weights for the way back."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q, k [N, T, d], v [N, T, dv] -> [N, T, dv]"""
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = torch.empty_like(v)
        future = torch.full((QUERIES_PER_BLOCK, QUERIES_PER_BLOCK), float("-inf")).triu(1)
        kept = []
        for first, last in _blocks(q.shape[1]):
            scores = torch.bmm(q[:, first:last], k[:, :last].transpose(1, 2)).mul_(scale)
            scores[..., first:] += future[: last - first, : last - first]
            weights = scores.softmax(dim=-1)
            out[:, first:last] = torch.bmm(weights, v[:, :last])
            kept.append(weights)
        ctx.save_for_backward(q, k, v, *(kept if any(ctx.needs_input_grad) else ()))
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        grad = grad.contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for weights, (first, last) in zip(kept, _blocks(q.shape[1]), strict=True):
            part = grad[:, first:last]
            grad_v[:, :last].baddbmm_(weights.transpose(1, 2), part)
            grad_scores = torch.bmm(part, v[:, :last].transpose(1, 2))
            # Derivative of the softmax: w * (g - sum(w * g)), here in one pass over the block.
            grad_scores = torch._softmax_backward_data(grad_scores, weights, -1, weights.dtype)
            grad_q[:, first:last] = torch.bmm(grad_scores, k[:, :last])
            grad_k[:, :last].baddbmm_(grad_scores.transpose(1, 2), q[:, first:last], alpha=ctx.scale)
        return grad_q.mul_(ctx.scale), grad_k, grad_v, None


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(first, min(first + QUERIES_PER_BLOCK, length)) for first in range(0, length, QUERIES_PER_BLOCK)]
