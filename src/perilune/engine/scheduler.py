"""What the next engine step computes: continuous batching with chunked prefill.

Every step, sequences that generate come first (one token each), then started prompts, then waiting
ones; a step computes at most max_batch_tokens. A prompt's full blocks are published when its chunk is
planned, not when it is done: a forward writes the latents of all its rows in a layer before any row
looks at them, so the next sequence of a wave shares them within the same step.

Of the waiting, whoever finds most of its prompt in the cache goes first, except that one admission in
FAIR_SHARE goes to the longest waiting. Among more agents than fit, this lets some finish while their
prefixes are warm, where first come, first served would throw out every prefix just before its next use.

When blocks run out the youngest running sequence is preempted: it gives its blocks back, waits at the
front and is computed again later, mostly from the cache.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from perilune.engine.cache import BlockCache
from perilune.engine.sequence import Sequence

FAIR_SHARE = 8


@dataclass(frozen=True, slots=True)
class Part:
    """The next `count` tokens of a sequence, computed in one step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def samples(self) -> bool:
        """All tokens will be computed: a next one can be sampled."""
        return self.end == len(self.sequence.tokens)


@dataclass(slots=True)
class Step:
    parts: list[Part] = field(default_factory=list)
    fresh_blocks: list[int] = field(default_factory=list)
    """Given out in this step: to be zeroed first, for padding reads what the last owner left."""
    twins: list[tuple[Sequence, int, int]] = field(default_factory=list)
    """(sequence, place, block): after the step the sequence uses this block, which another filled alike."""


class Scheduler:
    def __init__(self, cache: BlockCache, max_batch_tokens: int, max_sequences: int) -> None:
        self.cache = cache
        self.waiting: list[Sequence] = []
        """In the order of arrival."""
        self.preempted: deque[Sequence] = deque()
        """Waiting to be resumed, before all others."""
        self.running: list[Sequence] = []
        """In the order of their (latest) admission: the last one is preempted first."""
        self.preemptions = 0
        self.tokens_prefilled = 0
        self.tokens_from_cache = 0
        self._admissions = 0
        self._max_batch_tokens = max(max_batch_tokens, max_sequences)
        self._max_sequences = max_sequences

    def add(self, sequence: Sequence) -> None:
        found = self.cache.find(sequence.tokens, sequence.call.cache_salt)
        sequence.expected = len(found) * self.cache.block_size
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence, *, spoilt: bool = False) -> None:
        """Take out a sequence that ended. `spoilt`: what it computed must not be found by others."""
        place = next(p for p in (self.running, self.waiting, self.preempted) if sequence in p)
        place.remove(sequence)
        self._give_back(sequence, spoilt=spoilt)

    def plan(self) -> Step:
        """The next step; no parts when there is nothing to do. Call `done` after computing it."""
        step = Step()
        budget = self._max_batch_tokens
        # Stable: within each kind the order of admission.
        for sequence in sorted(self.running, key=lambda s: s.pending > 1):
            count = min(sequence.pending, budget)
            if count and sequence.blocks and self._make_room(sequence, count, step):
                budget -= self._take(sequence, count, step)
        while budget and len(self.running) < self._max_sequences and (newcomer := self._next()):
            if not self._admit(newcomer):
                break
            (self.preempted if self.preempted else self.waiting).remove(newcomer)
            self.running.append(newcomer)
            self._admissions += 1
            budget -= self._take(newcomer, min(newcomer.pending, budget), step)
        return step

    def _next(self) -> Sequence | None:
        """Whose turn it is to be admitted."""
        if self.preempted:
            return self.preempted[0]
        if not self.waiting:
            return None
        if self._admissions % FAIR_SHARE == 0:
            return self.waiting[0]
        # Of equals the first, which came first.
        return max(self.waiting, key=lambda sequence: sequence.expected)

    def done(self, step: Step) -> None:
        """The step's latents are in the cache."""
        for part in step.parts:
            part.sequence.computed = part.end
        for sequence, place, block in step.twins:
            self.cache.release([sequence.blocks[place]])
            sequence.blocks[place] = block

    def _admit(self, sequence: Sequence) -> bool:
        """Attach what the cache has of the sequence, if the rest would fit as well."""
        cache = self.cache
        matched = cache.match(sequence.tokens, sequence.call.cache_salt)
        # Room for one more block each keeps the newcomer from being preempted at once.
        wanted = cache.needed(len(sequence.tokens) + 1) - len(matched) + len(self.running)
        if wanted > cache.available and self.running:
            cache.release(matched)
            return False
        sequence.blocks.extend(matched)
        sequence.published = len(matched)
        sequence.computed = len(matched) * cache.block_size
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
            self.tokens_from_cache += sequence.computed
        return True

    def _make_room(self, sequence: Sequence, count: int, step: Step) -> bool:
        """Preempt from the end until `count` more tokens fit; False if the sequence had to go itself."""
        planned = {id(part.sequence) for part in step.parts}
        lacking = self.cache.needed(sequence.computed + count) - len(sequence.blocks)
        while lacking > self.cache.available:
            victim = next(other for other in reversed(self.running) if id(other) not in planned)
            self.running.remove(victim)
            self._give_back(victim)
            self.preempted.appendleft(victim)
            self.preemptions += 1
            if victim is sequence:
                return False
        return True

    def _take(self, sequence: Sequence, count: int, step: Step) -> int:
        part = Part(sequence, sequence.computed, count)
        if sequence.computed < len(sequence.call.prompt):
            self.tokens_prefilled += min(part.end, len(sequence.call.prompt)) - sequence.computed
        while len(sequence.blocks) < self.cache.needed(part.end):
            block = self.cache.allocate()
            sequence.blocks.append(block)
            step.fresh_blocks.append(block)
        self._publish(part, step)
        step.parts.append(part)
        return count

    def _publish(self, part: Part, step: Step) -> None:
        """Let others find the blocks that this part fills."""
        sequence, size = part.sequence, self.cache.block_size
        for place in range(sequence.published, part.end // size):
            block = self.cache.publish(
                sequence.blocks[place - 1] if place else None,
                sequence.tokens[place * size : (place + 1) * size],
                sequence.call.cache_salt,
                sequence.blocks[place],
            )
            if block is None:
                break
            sequence.published += 1
            if block != sequence.blocks[place]:
                step.twins.append((sequence, place, block))
                # The chain goes on from the other's block, which is ours only after the step.
                break

    def _give_back(self, sequence: Sequence, *, spoilt: bool = False) -> None:
        self.cache.release(sequence.blocks, spoilt=spoilt)
        del sequence.blocks[:]
        sequence.computed = sequence.published = 0
