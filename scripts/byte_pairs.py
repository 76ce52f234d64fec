"""A checkpoint's tokenizer as byte pairs, the form in which llama.cpp and `tokenizers` read one.

Ranks alone (tiktoken.model) do not say of which two tokens each was made; that is found again by encoding
every token with the ranks below its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from perilune.chat.tokenizer import Tokenizer
from perilune.model.tiny import PLAIN_MARKERS


def _letters() -> tuple[str, ...]:
    """A printable letter for each byte, as GPT-2's vocabulary writes them."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))


LETTERS = _letters()


def spelt(token: bytes) -> str:
    return "".join(LETTERS[byte] for byte in token)


@dataclass(frozen=True)
class BytePairs:
    tokens: tuple[str, ...]
    """By id: those of text in letters, then the control tokens by name."""
    text_tokens: int
    merges: tuple[tuple[str, str], ...]
    shown: frozenset[int]
    """Control tokens that belong to an answer's text, such as those around a tool call."""
    bos: int
    eos: int
    pad: int


def byte_pairs(folder: Path) -> BytePairs:
    """Of the tokenizer in `folder`. Raises TokenizerError."""
    tokenizer = Tokenizer.load(folder)
    specials = dict(tokenizer.specials)
    texts = tokenizer.token_bytes()[: tokenizer.vocab_size - len(specials)]
    ranks = {text: rank for rank, text in enumerate(texts)}
    merges = tuple(_parts(text, rank, ranks) for rank, text in enumerate(texts) if len(text) > 1)
    return BytePairs(
        tokens=(*(spelt(text) for text in texts), *sorted(specials, key=specials.__getitem__)),
        text_tokens=len(texts),
        merges=tuple((spelt(left), spelt(right)) for left, right in merges),
        shown=frozenset(token for name, token in specials.items() if name.startswith(PLAIN_MARKERS)),
        bos=specials["[BOS]"],
        eos=tokenizer.eos_id,
        pad=specials["[PAD]"],
    )


def _parts(text: bytes, rank: int, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that merge into this one: what is left of its bytes when all earlier merges are done."""
    parts = [text[at : at + 1] for at in range(len(text))]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, rank) for left, right in itertools.pairwise(parts)]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]
