"""One call inside the engine: its tokens, its cache blocks and what sampling has to remember."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from perilune.engine.grammar import GrammarState
from perilune.engine.protocol import Generate
from perilune.errors import ContextTooLong, InputError

MAX_SEED_BITS = 64
MEDIA = 1 << 64
"""From here on a token stands for a place in something seen. It follows from the content's key, so that
equal prompts of equal content, and no others, share their cache blocks."""
MEDIA_PLACE_BITS = 32


@dataclass(eq=False, slots=True)
class Sequence:
    call: Generate
    tokens: list[int]
    """The prompt, then the output; in the places of media, numbers from MEDIA on."""
    stop_ids: frozenset[int]
    draws: random.Random
    """This sequence's own generator: what it gives depends on the seed and the position alone."""
    grammar: GrammarState | None = None
    blocks: array[int] = field(default_factory=lambda: array("q"))
    """Cache blocks in order; every one is referenced by this sequence."""
    computed: int = 0
    """How many of the tokens have their latents in the blocks."""
    published: int = 0
    """How many of the first blocks others can find."""
    expected: int = 0
    """Tokens that the cache had when the call came: what the order of admission goes by."""
    cached_tokens: int | None = None
    """Prompt tokens that came from the cache when the call was first admitted."""
    announced: bool = False
    """The first chunk of the answer was sent."""

    @property
    def pending(self) -> int:
        """Tokens still to compute before the next one can be sampled."""
        return len(self.tokens) - self.computed

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """What must not be sampled next, grammar apart."""
        waits = self.grammar is not None and not self.grammar.active
        return self.call.banned_ids + self.call.grammar_only_ids if waits else self.call.banned_ids

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.call.prompt)


def open_sequence(
    call: Generate, vocab_size: int, max_context: int, media_lengths: SequenceOf[int] = ()
) -> Sequence:
    """A sequence for the call, without its grammar; `media_lengths` are the tokens of each of its media,
    whose places were checked. Raises InputError or ContextTooLong."""
    _check(call, vocab_size)
    length = len(call.prompt) + call.max_tokens
    if length > max_context:
        raise ContextTooLong(
            f"{len(call.prompt)} prompt tokens and max_tokens {call.max_tokens} are together "
            f"above the context of {max_context}",
            mend="shorten the conversation or lower max_tokens",
        )
    return Sequence(
        call=call,
        tokens=_tokens(call, media_lengths),
        stop_ids=frozenset(call.stop_ids),
        draws=random.Random(call.seed),
    )


def _tokens(call: Generate, media_lengths: SequenceOf[int]) -> list[int]:
    tokens = list(call.prompt)
    for seen, length in zip(call.media, media_lengths, strict=True):
        first = MEDIA + (int.from_bytes(seen.key, "big") << MEDIA_PLACE_BITS)
        tokens[seen.start : seen.start + length] = range(first, first + length)
    return tokens


def _check(call: Generate, vocab_size: int) -> None:
    if not call.prompt:
        raise InputError("holds no tokens", field="prompt", mend="send at least one token")
    if call.max_tokens < 1:
        raise InputError(f"is {call.max_tokens}", field="max_tokens", mend="ask for at least 1")
    if not (math.isfinite(call.temperature) and call.temperature >= 0):
        raise InputError(f"is {call.temperature}", field="temperature", mend="use 0 (greedy) or more")
    if not 0 < call.top_p <= 1:
        raise InputError(f"is {call.top_p}", field="top_p", mend="use a number above 0, at most 1")
    for name, ids in (("prompt", call.prompt), ("banned_ids", call.banned_ids + call.grammar_only_ids)):
        if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
            raise InputError(
                f"holds an id outside 0..{vocab_size - 1}", field=name, mend="use this model's tokenizer"
            )
