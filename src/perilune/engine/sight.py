"""What calls show the model: checked when a call comes, seen when its place in the prompt is computed.

An image is computed by itself and whole, within the step that first needs a row of it; other calls wait
so long. What was seen is kept by content, least recently used thrown out first, and never shared over a
salt: the time that a call takes must not tell one organisation what another has sent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from perilune.engine.protocol import Generate, Seen
from perilune.engine.scheduler import Part
from perilune.errors import InputError
from perilune.model.vision import COLOURS, Grid, Vision, check_grid, normalised, tokens_of

MOST_KEPT_BYTES = 512 * 1024**2
Key = tuple[str, bytes]


class Sight:
    """A vision tower, or none, and the embeddings of what it has seen lately."""

    def __init__(self, vision: Vision | None, most_kept_bytes: int = MOST_KEPT_BYTES) -> None:
        self._vision = vision
        self._most = most_kept_bytes
        self._kept: OrderedDict[Key, Tensor] = OrderedDict()
        self._kept_bytes = 0
        self.computed = 0
        """Items that went through the tower."""

    def check(self, call: Generate) -> list[int]:
        """Tokens of each of the call's media.

        Raises InputError for media that this model cannot see, or that do not fit the prompt."""
        if not call.media:
            return []
        if self._vision is None:
            raise InputError("the model sees no images", field="media", mend="send text only")
        config, end = self._vision.config, 0
        for seen in call.media:
            grid = Grid(*seen.grid)
            check_grid(config, grid)
            if len(seen.patches) != grid.patches * COLOURS * config.patch_size**2:
                raise InputError(
                    f"has {len(seen.patches)} bytes, not those of {grid.patches} patches", field="media"
                )
            if not end <= seen.start <= len(call.prompt) - tokens_of(config, grid):
                raise InputError(
                    f"{tokens_of(config, grid)} tokens from {seen.start} on are not a place of their own in "
                    f"a prompt of {len(call.prompt)}",
                    field="media",
                )
            end = seen.start + tokens_of(config, grid)
        return [self._length(seen) for seen in call.media]

    def placed(self, parts: SequenceOf[Part]) -> tuple[Tensor, Tensor] | None:
        """For one step: rows of its flat batch and the embeddings that stand there; None for text alone."""
        rows, embeddings = [], []
        offset = 0
        for part in parts:
            for seen in part.sequence.call.media:
                end = seen.start + self._length(seen)
                first, last = max(seen.start, part.start), min(end, part.end)
                if first < last:
                    rows.append(torch.arange(first, last) - part.start + offset)
                    whole = self._embeddings(part.sequence.call.cache_salt, seen)
                    embeddings.append(whole[first - seen.start : last - seen.start])
            offset += part.count
        if not rows:
            return None
        return torch.cat(rows).to(embeddings[0].device), torch.cat(embeddings)

    def _length(self, seen: Seen) -> int:
        assert self._vision is not None
        return tokens_of(self._vision.config, Grid(*seen.grid))

    def _embeddings(self, salt: str, seen: Seen) -> Tensor:
        key = (salt, seen.key)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        assert self._vision is not None
        grid, edge = Grid(*seen.grid), self._vision.config.patch_size
        # A copy: torch wants memory that could be written to.
        raw = torch.frombuffer(bytearray(seen.patches), dtype=torch.uint8)
        device = self._vision.vision_tower.patch_embed.proj.weight.device
        pixels = normalised(raw.to(device).view(grid.patches, COLOURS, edge, edge))
        embeddings: Tensor = self._vision(pixels, grid)
        self.computed += 1
        self._keep(key, embeddings)
        return embeddings

    def _keep(self, key: Key, embeddings: Tensor) -> None:
        """The newest stays even if it is larger than all that may be kept: its call goes on with it."""
        self._kept[key] = embeddings
        self._kept_bytes += embeddings.nbytes
        while self._kept_bytes > self._most and len(self._kept) > 1:
            _, old = self._kept.popitem(last=False)
            self._kept_bytes -= old.nbytes
