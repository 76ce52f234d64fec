"""Muon for matrices, AdamW for the rest, both sharded: each rank updates its share of the parameters.

Masters and moments are F32 and live on the owner only; the decoder holds BF16 copies. Muon: momentum,
then the nearest orthogonal matrix by five Newton-Schulz steps (Keller Jordan's coefficients).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from perilune.model.int4 import fake_quantise
from perilune.model.text import TextDecoder

MOMENTUM = 0.95
DECAY = 0.05
BETAS = (0.9, 0.95)
LARGEST_NORM = 1.0
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Sharded:
    """The optimiser of one rank among `world`."""

    def __init__(self, decoder: TextDecoder, rank: int, world: int) -> None:
        named = sorted(decoder.named_parameters(), key=lambda item: (-item[1].numel(), item[0]))
        self._shares: list[list[tuple[str, torch.nn.Parameter]]] = [[] for _ in range(world)]
        for name, parameter in named:
            min(self._shares, key=lambda share: sum(p.numel() for _, p in share)).append((name, parameter))
        self._rank, self._world = rank, world
        self.masters = {name: p.detach().float().clone() for name, p in self._shares[rank]}
        self.moments: dict[str, dict[str, Tensor]] = {name: {} for name in self.masters}
        self.int4_group: int | None = None
        """When set, routed experts are published to the decoder as INT4 would store them."""

    def state(self) -> dict[str, Any]:
        return {"masters": self.masters, "moments": self.moments}

    def restore(self, state: dict[str, Any]) -> None:
        self.masters, self.moments = state["masters"], state["moments"]
        self.publish()

    def step(self, number: int, rate: float) -> float:
        """Average the gradients, update this rank's share, publish; returns the share's gradient norm."""
        flats = [self._flat_gradients(share) for share in self._shares]
        for owner, flat in enumerate(flats):
            dist.reduce(flat, owner)
        mine = flats[self._rank].float() / self._world
        norm = float(mine.norm())
        mine *= min(1.0, LARGEST_NORM / (norm + 1e-6))
        offset = 0
        for name, parameter in self._shares[self._rank]:
            gradient = mine[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
            self._update(name, gradient, number, rate)
        self.publish()
        return norm

    def publish(self) -> None:
        """Every rank's masters into every rank's decoder."""
        for owner, share in enumerate(self._shares):
            if owner == self._rank:
                flat = torch.cat([self._published(name).flatten() for name, _ in share]).bfloat16()
            else:
                flat = torch.empty(sum(p.numel() for _, p in share), dtype=torch.bfloat16)
            dist.broadcast(flat, owner)
            offset = 0
            for _, parameter in share:
                parameter.data.copy_(flat[offset : offset + parameter.numel()].view_as(parameter))
                parameter.grad = None
                offset += parameter.numel()

    def _published(self, name: str) -> Tensor:
        master = self.masters[name]
        if self.int4_group is None or ".experts." not in name:
            return master
        return fake_quantise(master, self.int4_group)

    def _flat_gradients(self, share: list[tuple[str, torch.nn.Parameter]]) -> Tensor:
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for _, p in share]
        return torch.cat([part.flatten() for part in parts])

    def _update(self, name: str, gradient: Tensor, number: int, rate: float) -> None:
        master, moments = self.masters[name], self.moments[name]
        if _is_matrix(name, master):
            momentum = moments.setdefault("momentum", torch.zeros_like(master))
            momentum.lerp_(gradient, 1 - MOMENTUM)
            direction = orthogonalised(gradient.lerp(momentum, MOMENTUM))
            scale = 0.2 * math.sqrt(max(master.shape[-2:]))
            master.mul_(1 - rate * DECAY).add_(direction, alpha=-rate * scale)
            return
        if not moments:
            moments |= {"first": torch.zeros_like(master), "second": torch.zeros_like(master)}
        moments["first"].lerp_(gradient, 1 - BETAS[0])
        moments["second"].lerp_(gradient.square(), 1 - BETAS[1])
        first = moments["first"] / (1 - BETAS[0] ** (number + 1))
        second = moments["second"] / (1 - BETAS[1] ** (number + 1))
        slower = 0.3 if name.endswith("mlp.gate.weight") else 1.0
        master.sub_(first / (second.sqrt() + 1e-10), alpha=rate * slower)


def _is_matrix(name: str, parameter: Tensor) -> bool:
    apart = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight")
    return parameter.dim() >= 2 and not name.endswith(apart)


def orthogonalised(matrix: Tensor) -> Tensor:
    """The nearest matrix (of each in a stack) with singular values near 1."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    out: Tensor = (x.mT if tall else x).float()
    return out
