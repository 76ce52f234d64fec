"""Routed experts: sum over a token's chosen experts of weight * down(silu(gate x) * up x).

`routed_experts` is the interface. `routed_experts_definition` says what it computes; the grouped twin
sorts token-expert pairs by expert and multiplies each expert's run at once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_PAIRS = 4
"""Up to so many token-expert pairs are computed one by one when no gradient is wanted."""
PADDED_TO = 64
"""In BF16 training on a CPU every expert's run is filled up to a multiple of this: the library behind
torch compiles a product anew for every shape it has not met, which costs more than the product."""


def routed_experts(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x [n, h], chosen and weights [n, k], gate_up [E, 2i, h] (gate first), down [E, h, i] -> [n, h].

    Differentiable in x, weights, gate_up and down.
    """
    if chosen.numel() <= FEW_PAIRS and not torch.is_grad_enabled():
        return _few(x, chosen, weights, gate_up, down)
    order = chosen.flatten().argsort(stable=True)
    counts = chosen.flatten().bincount(minlength=len(gate_up))
    shares = weights.flatten().index_select(0, order)
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and torch.is_grad_enabled():
        order, shares, counts = _padded(order, shares, counts)
    token = order // chosen.shape[1]
    runs = counts.tolist()
    gate, up = grouped_linear(x.index_select(0, token), gate_up, runs).chunk(2, dim=-1)
    answers = grouped_linear(F.silu(gate) * up, down, runs)
    answers = answers * shares[:, None].to(answers.dtype)
    return torch.zeros_like(x).index_add(0, token, answers)


def _padded(order: Tensor, shares: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Runs filled up with pair 0 at share 0, which adds nothing to any output or gradient."""
    whole = (counts + PADDED_TO - 1) // PADDED_TO * PADDED_TO
    shift = (whole - counts).cumsum(0) - (whole - counts)
    place = torch.arange(len(order), device=order.device) + shift.repeat_interleave(counts)
    length = int(whole.sum())
    return (
        order.new_zeros(length).index_copy(0, place, order),
        shares.new_zeros(length).index_copy(0, place, shares),
        whole,
    )


def _few(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """One pair after the other: sorting a handful would cost more than their products."""
    rows = []
    for row, experts, shares in zip(x, chosen.tolist(), weights.tolist(), strict=True):
        out = torch.zeros_like(row)
        for expert, share in zip(experts, shares, strict=True):
            gate, up = torch.mv(gate_up[expert], row).chunk(2)
            out.addmv_(down[expert], F.silu(gate).mul_(up), alpha=share)
        rows.append(out)
    return torch.stack(rows)


def routed_experts_definition(
    x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Every expert on every token, kept where chosen. Slow and plain."""
    out = torch.zeros_like(x)
    for expert in range(len(gate_up)):
        gate, up = F.linear(x, gate_up[expert]).chunk(2, dim=-1)
        answer = F.linear(F.silu(gate) * up, down[expert])
        share = (weights * (chosen == expert)).sum(dim=-1, keepdim=True)
        out = out + answer * share.to(x.dtype)
    return out


def grouped_linear(rows: Tensor, weight: Tensor, runs: list[int]) -> Tensor:
    """rows [m, in] sorted by expert in runs of runs[e] rows, weight [E, out, in] -> [m, out]."""
    out: Tensor = _GroupedLinear.apply(rows, weight, runs)  # type: ignore[no-untyped-call]
    return out


class _GroupedLinear(torch.autograd.Function):
    """Rows sorted by expert, one product per expert.

    Written by hand because automatic differentiation of `weight[e]` in a loop allocates a gradient of
    the whole stack for every expert.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, runs: list[int]) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.runs = runs
        out = rows.new_empty(len(rows), weight.shape[1])
        for expert, part in _spans(runs):
            torch.mm(rows[part], weight[expert].T, out=out[part])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_rows = torch.empty_like(rows)
        grad_weight = torch.zeros_like(weight)
        for expert, part in _spans(ctx.runs):
            torch.mm(grad[part], weight[expert], out=grad_rows[part])
            torch.mm(grad[part].T, rows[part], out=grad_weight[expert])
        return grad_rows, grad_weight, None


def _spans(runs: list[int]) -> list[tuple[int, slice]]:
    """(expert, its rows) for every expert that has any."""
    spans, start = [], 0
    for expert, count in enumerate(runs):
        if count:
            spans.append((expert, slice(start, start + count)))
        start += count
    return spans
