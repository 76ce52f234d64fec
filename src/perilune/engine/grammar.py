"""Grammars over token ids: which tokens may come next. llguidance does the work; kept to this file.

llguidance and not xgrammar: its matcher is ready in a millisecond and needs 0.4 s once for the real
vocabulary, and its Lark dialect names special tokens by id.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence

import llguidance
import numpy as np
import torch
from torch import Tensor

from perilune.engine.protocol import Vocabulary
from perilune.errors import InputError

KEPT_GRAMMARS = 256
"""Compiled grammars kept for the next call with the same text."""
MESSAGE_CHARS = 300
QUOTED_LINE = re.compile(r"\s*(\d+ \||\^)")
"""A line of the grammar, as llguidance shows it below what it says."""
PLACE = re.compile(r"^at \d+\(\d+\): ")
MASKS_ONLY = '\n%llguidance {"no_forcing": true}\n'
"""Otherwise forced text is tokenised by llguidance, which has no tokenizer here, and masks become wrong. So
every token that fits is allowed, and how forced text is cut into tokens stays the model's choice."""


class GrammarState:
    """Where one sequence stands in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, after_id: int | None) -> None:
        self.matcher = matcher
        self.active = after_id is None
        """False: the id that starts the grammar was not generated yet."""
        self._after_id = after_id

    def accept(self, token: int) -> None:
        """Go on by one sampled token. Raises InputError when the grammar became too complex to follow."""
        if not self.active:
            self.active = token == self._after_id
            return
        if not self.matcher.consume_token(token):
            raise InputError(_short(self.matcher.get_error()), field="grammar", mend="simplify the grammar")

    @property
    def complete(self) -> bool:
        """Nothing but the end can follow."""
        return self.active and bool(self.matcher.is_stopped())


class Grammars:
    """Compiles grammars for one vocabulary and computes the masks of a batch."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, threads: int) -> None:
        self.eos_id = vocabulary.eos_id
        self._vocab_size = vocab_size
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Tokens(vocabulary)))
        self._executor = llguidance.LLExecutor(num_threads=threads)
        self._words = -(-max(vocab_size, len(vocabulary.tokens)) // 32)
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()

    def start(self, grammar: str, after_id: int | None) -> GrammarState:
        """Raises InputError with the grammar's own complaint."""
        matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = llguidance.LLMatcher(
                self._tokenizer, llguidance.LLMatcher.grammar_from_lark(grammar + MASKS_ONLY), log_level=0
            )
            if matcher.is_error():
                raise InputError(
                    _short(matcher.get_error()), field="grammar", mend="see llguidance's Lark dialect"
                )
            self._compiled[grammar] = matcher
            if len(self._compiled) > KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return GrammarState(matcher.deep_copy(), after_id)

    def allowed(self, states: Sequence[GrammarState]) -> Tensor:
        """bool [S, vocab]: what may come next in each state."""
        masks = np.zeros((len(states), self._words), dtype=np.int32)
        if len(states) == 1:
            states[0].matcher.unsafe_compute_mask_ptr(masks.ctypes.data, masks.nbytes)
        else:
            places = [(state.matcher, place) for place, state in enumerate(states)]
            self._executor.unsafe_compute_mask_ptr(
                places, masks.ctypes.data, masks.shape[1] * masks.itemsize, len(states)
            )
        bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little", count=self._vocab_size)
        return torch.from_numpy(bits.view(np.bool_))


class _Tokens:
    """What llguidance asks of a tokenizer."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = vocabulary.tokens
        self.special_token_ids = list(vocabulary.special_ids)
        self.eos_token_id = vocabulary.eos_id
        self.bos_token_id = None

    def __call__(self, text: bytes) -> list[int]:
        # Only asked for forced text: MASKS_ONLY.
        return []


def _short(message: str) -> str:
    """The complaint without its place in our grammar, whose lines mean nothing to whoever sent a schema."""
    lines = [line for line in message.splitlines() if not QUOTED_LINE.match(line)]
    return " ".join(PLACE.sub("", " ".join(lines)).split())[:MESSAGE_CHARS]
