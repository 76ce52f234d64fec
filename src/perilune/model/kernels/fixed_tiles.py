"""Attention and experts whose products all have one shape: a row's neighbours change none of its bits.

Matrix libraries choose how to add up by the shape of a product: the same row comes out with another last
bit among 3 rows than among 40. Here a product always has ROWS rows, filled up with rows that mean nothing,
and keys always come in the same tiles, counted from the start of the sequence and added up one after the
other. What a tile holds beyond what a row may see adds exact zeros. The rest of the rule is the caller's:
all other operations get ROWS rows too (engine/runner.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROWS = 32
KEYS = 64
"""Keys in one tile of scores."""
TILES_AT_ONCE = 64
"""Tiles whose scores live at once, besides what all of them leave: 512 KB."""


def routed_experts_fixed(
    x: Tensor, chosen: Tensor, weights: Tensor, expert: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """x [ROWS, h], chosen and weights [ROWS, k] -> [ROWS, h], where `expert` computes rows by one expert.

    An expert that any row chose computes all rows; what a row did not choose is left out, not weighed by
    zero: it might be infinite.
    """
    out = torch.zeros_like(x)
    for number in sorted(set(chosen.flatten().tolist())):
        answer = expert(x, number)
        mine = chosen == number
        share = (weights * mine).sum(dim=-1, keepdim=True).to(x.dtype)
        out = torch.where(mine.any(dim=-1, keepdim=True), out + answer * share, out)
    return out


def attend_fixed(
    queries: Tensor, pages: Tensor, table: Tensor, length: int, scale: float, kv_lora: int
) -> Tensor:
    """Twin of attend_rows (model/kernels/latent_attention.py): same arguments, same meaning, fixed tiles.

    queries [q, H, kv_lora + rope] -> [q, H, kv_lora].
    """
    count, heads, width = queries.shape
    keys = _key_tiles(pages, table, length).to(queries.dtype)
    last_seen = torch.arange(length - count, length, device=queries.device).repeat_interleave(heads)
    flat = queries.reshape(count * heads, width)
    parts = [
        _attend_tile(flat[first : first + ROWS], last_seen[first : first + ROWS], keys, scale, kv_lora)
        for first in range(0, len(flat), ROWS)
    ]
    return torch.cat(parts).view(count, heads, kv_lora)


def _key_tiles(pages: Tensor, table: Tensor, length: int) -> Tensor:
    """[tiles, KEYS, width]: the sequence from its first token on, zeros after its last."""
    blocks = -(-length // pages.shape[1])
    tiles = -(-length // KEYS)
    keys = pages.new_zeros(tiles * KEYS, pages.shape[-1])
    keys[:length] = pages[table[:blocks]].view(-1, pages.shape[-1])[:length]
    return keys.view(tiles, KEYS, -1)


def _attend_tile(rows: Tensor, last_seen: Tensor, keys: Tensor, scale: float, kv_lora: int) -> Tensor:
    """rows [r <= ROWS, width], last_seen [r] -> [r, kv_lora]; later tiles than any row sees are not read."""
    real = len(rows)
    tiles = int(last_seen.max()) // KEYS + 1
    padded = rows.new_zeros(ROWS, rows.shape[1])
    padded[:real] = rows
    # A padding row sees the first token: a row that sees nothing has no softmax.
    seen = last_seen.new_zeros(ROWS)
    seen[:real] = last_seen
    parts = [
        (first, _scores(padded, seen, keys[first : first + TILES_AT_ONCE], first, scale))
        for first in range(0, tiles, TILES_AT_ONCE)
    ]
    highest = torch.stack([scores.amax(dim=(0, 2)) for _, scores in parts]).amax(dim=0)
    total = rows.new_zeros(ROWS)
    mixed = rows.new_zeros(ROWS, kv_lora)
    for first, scores in parts:
        weights = (scores - highest[None, :, None]).exp()
        values = torch.bmm(weights, keys[first : first + len(scores), :, :kv_lora])
        # One tile after the other: a sum over all of them would be grouped by how many there are.
        for tile_total, tile_values in zip(weights.sum(dim=-1), values, strict=True):
            total = total + tile_total
            mixed = mixed + tile_values
    return (mixed / total[:, None])[:real]


def _scores(rows: Tensor, seen: Tensor, keys: Tensor, first: int, scale: float) -> Tensor:
    """[tiles, ROWS, KEYS], -inf where a row does not see the key; `first` is the number of the first tile."""
    tiles = len(keys)
    scores = torch.bmm(rows.expand(tiles, -1, -1), keys.transpose(1, 2)) * scale
    places = torch.arange(first * KEYS, (first + tiles) * KEYS, device=rows.device).view(tiles, 1, KEYS)
    return scores.masked_fill_(places > seen[None, :, None], float("-inf"))
