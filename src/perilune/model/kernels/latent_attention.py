"""Attention of wide queries over paged latents: a definition, and what prefill and decode run.

`pages` is one layer of the cache, [blocks, block_size, kv_lora + rope]; a row is key and value at
once: all of it is the key, its first kv_lora values are the value.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCORES_AT_ONCE = 2**23
"""32 MiB of F32 scores: near the caches of a CPU, and little beside a model."""
MAX_ROWS_AT_ONCE = 256


def attend_rows(
    queries: Tensor, pages: Tensor, table: Tensor, length: int, scale: float, kv_lora: int
) -> Tensor:
    """Definition: q newest rows of one sequence of `length` tokens, each seeing itself and its past.

    queries [q, H, kv_lora + rope] -> [q, H, kv_lora]; softmax in F32.
    """
    count, heads, width = queries.shape
    blocks = -(-length // pages.shape[1])
    past = pages[table[:blocks]].view(-1, width)[:length].to(queries.dtype)
    scores = (queries.reshape(count * heads, width) @ past.T).float().view(count, heads, length) * scale
    last_seen = torch.arange(length - count, length, device=queries.device)
    hidden = torch.arange(length, device=queries.device) > last_seen[:, None]
    weights = scores.masked_fill_(hidden[:, None], float("-inf")).softmax(dim=-1).to(queries.dtype)
    return (weights.view(count * heads, length) @ past[:, :kv_lora]).view(count, heads, kv_lora)


def attend_chunk(
    queries: Tensor, pages: Tensor, table: Tensor, length: int, scale: float, kv_lora: int
) -> Tensor:
    """attend_rows in parts: no more than SCORES_AT_ONCE scores live at once, the later past is skipped."""
    count, heads, _ = queries.shape
    rows = min(MAX_ROWS_AT_ONCE, max(1, SCORES_AT_ONCE // (heads * length)))
    parts = []
    for first in range(0, count, rows):
        last = min(first + rows, count)
        seen = length - count + last
        parts.append(attend_rows(queries[first:last], pages, table, seen, scale, kv_lora))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def attend_decode(queries: Tensor, pages: Tensor, tables: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Twin of attend_rows for S sequences with one row each, padded to the longest.

    queries [S, H, kv_lora + rope], tables [S, blocks], bias [S, 1, blocks * block_size] with 0 where a
    token is seen and -inf where not -> [S, H, kv_lora + rope], of which the last rope values mean nothing.
    """
    past = pages.index_select(0, tables.flatten()).view(len(tables), -1, pages.shape[-1]).to(queries.dtype)
    scores = torch.baddbmm(bias, queries, past.transpose(1, 2), alpha=scale)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(queries.dtype)
    # The whole row as value: a slice of it would be copied by the product.
    return torch.bmm(weights, past)
