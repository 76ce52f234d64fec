"""Which cache block holds which tokens: allocation, sharing by prefix, eviction. No tensors here.

A block is *used* (some sequence refers to it), *cached* (nobody does, but its tokens can still be
found) or *free*. Full blocks are *published* under (what came before, their tokens); "what came before"
is the serial number of the published block before them, or the caller's salt for the first one. Serials are
never used twice, so equal keys mean equal tokens from the start: a dictionary's hash finds the chain and
its equality proves it.

A sequence gives its blocks back last one first, and refers to a block only together with all before it.
So the least recently given back cached block never has a cached successor, and evicting it orphans nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from perilune.errors import EngineError

PADDING = 0
"""A block that no sequence gets: always zero, it fills up block tables."""
Key = tuple[int | str, tuple[int, ...]]


class BlockCache:
    def __init__(self, blocks: int, block_size: int) -> None:
        self.blocks = blocks
        self.block_size = block_size
        # Popped from the end: low numbers first.
        self._free = list(range(blocks, PADDING, -1))
        self._references = [0] * (blocks + 1)
        self._cached: OrderedDict[int, None] = OrderedDict()
        """Least recently given back first."""
        self._by_key: dict[Key, int] = {}
        self._published: dict[int, tuple[Key, int]] = {}
        """Block -> its key and its serial."""
        self._next_serial = 0

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def available(self) -> int:
        """Blocks that allocate() can still give."""
        return len(self._free) + len(self._cached)

    def needed(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    def match(self, tokens: Sequence[int], salt: str) -> list[int]:
        """The longest chain of published blocks that begins `tokens`, each now referenced once more.

        The last token is never covered: it must be computed to know what follows.
        """
        found = self.find(tokens, salt)
        for block in found:
            self._refer(block)
        return found

    def find(self, tokens: Sequence[int], salt: str) -> list[int]:
        """What match() would return, without referring to it."""
        size = self.block_size
        found: list[int] = []
        before: int | str = salt
        for start in range(0, len(tokens) - size, size):
            block = self._by_key.get((before, tuple(tokens[start : start + size])))
            if block is None:
                break
            found.append(block)
            before = self._published[block][1]
        return found

    def allocate(self) -> int:
        """A block for the caller alone. There must be one available."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
        self._references[block] = 1
        return block

    def publish(self, before: int | None, tokens: Sequence[int], salt: str, block: int) -> int | None:
        """Let others find `block`, which holds (or will hold before anyone reads it) these tokens.

        `before` is the block before it, None for a first one. Returns the block under which the tokens can
        be found: `block`, or the one that another sequence published first, now referenced once more.
        None if `before` cannot be found itself.
        """
        if before is not None and before not in self._published:
            return None
        key: Key = (salt if before is None else self._published[before][1], tuple(tokens))
        known = self._by_key.setdefault(key, block)
        if known == block:
            self._published[block] = (key, self._next_serial)
            self._next_serial += 1
        else:
            self._refer(known)
        return known

    def release(self, blocks: Sequence[int], *, spoilt: bool = False) -> None:
        """Give a sequence's blocks back. Spoilt ones that nobody else uses cannot be found again."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block]:
                continue
            if spoilt and block in self._published:
                self._forget(block)
            if block in self._published:
                self._cached[block] = None
            else:
                self._free.append(block)

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """The self-check, against the block tables of all running sequences. Raises EngineError."""
        references = [0] * (self.blocks + 1)
        for table in tables:
            for block in table:
                references[block] += 1
        used = {block for block, count in enumerate(references) if count}
        books = [*self._free, *self._cached, *used]
        problems = {
            "references differ from the block tables": references != self._references,
            "a block is lost or in two places": sorted(books) != list(range(1, self.blocks + 1)),
            "a free block is published": any(block in self._published for block in self._free),
            "a cached block is not published": any(block not in self._published for block in self._cached),
            "the index differs from the published blocks": self._by_key
            != {key: block for block, (key, _) in self._published.items()},
        }
        for problem, found in problems.items():
            if found:
                raise EngineError(f"cache bookkeeping: {problem}")

    def _refer(self, block: int) -> None:
        self._cached.pop(block, None)
        self._references[block] += 1

    def _forget(self, block: int) -> None:
        key, _ = self._published.pop(block)
        del self._by_key[key]
