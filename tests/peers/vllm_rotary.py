"""vLLM's CPU operator for plain rotary positions, by one head and by several: JSON to stdout.

The same queries are turned twice, as [tokens, heads * width] and as [tokens, heads, width], which is how its
DeepSeek code hands them over. Printed are the largest differences from the definition.
"""

from __future__ import annotations

import json

import torch
from vllm import _custom_ops
from vllm.platforms import current_platform

TOKENS, HEADS, WIDTH = 5, 4, 32


def turned(query: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, width]: each pair of neighbours by its angle."""
    turns = torch.polar(torch.ones_like(angles), angles)[:, None]
    pairs = torch.view_as_complex(query.reshape(*query.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)


def main() -> None:
    current_platform.import_kernels()
    torch.manual_seed(0)
    positions = torch.arange(TOKENS)
    angles = positions[:, None] * 50000.0 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
    table = torch.cat([angles.cos(), angles.sin()], dim=-1)
    query = torch.randn(TOKENS, HEADS, WIDTH)
    wanted = turned(query, angles)
    seen = {}
    for name, shape in (("flat", (TOKENS, HEADS * WIDTH)), ("by_head", (TOKENS, HEADS, WIDTH))):
        given, key = query.clone().view(shape), torch.zeros(TOKENS, WIDTH)
        _custom_ops.rotary_embedding(positions, given, key, WIDTH, table, False)
        seen[name] = float((given.view(wanted.shape) - wanted).abs().max())
    print(json.dumps(seen))


main()
