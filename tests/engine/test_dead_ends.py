"""Grammars and banned ids together: dead ends, and what must wait for the grammar."""

import pytest
import torch

from perilune.engine.grammar import Grammars
from perilune.engine.protocol import Generate, Vocabulary
from perilune.engine.sampling import choose
from perilune.engine.sequence import Sequence, open_sequence
from perilune.errors import InputError

EOS = 256
VOCABULARY = Vocabulary(
    tokens=(*(bytes([value]) for value in range(256)), b"<eos>"), special_ids=(EOS,), eos_id=EOS
)


def sequence(grammars: Grammars, temperature: float, top_p: float, banned: tuple[int, ...]) -> Sequence:
    call = Generate(
        id=1, prompt=(1,), max_tokens=5, temperature=temperature, top_p=top_p, seed=1, banned_ids=banned
    )
    opened = open_sequence(call, EOS + 1, 100)
    opened.grammar = grammars.start('start: "a"', None)
    return opened


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.95)])
def test_nothing_left_to_sample_is_an_error_of_that_call(temperature: float, top_p: float) -> None:
    grammars = Grammars(VOCABULARY, EOS + 1, threads=1)
    stuck = sequence(grammars, temperature, top_p, banned=(ord("a"),))
    free = sequence(grammars, temperature, top_p, banned=())
    error, token = choose(torch.zeros(2, EOS + 1), [stuck, free], grammars)
    assert isinstance(error, InputError)
    assert token == ord("a")


def test_what_belongs_to_the_grammar_waits_for_its_start() -> None:
    grammars = Grammars(VOCABULARY, EOS + 1, threads=1)
    marker, start, other = ord("m"), ord("s"), ord("o")
    call = Generate(id=1, prompt=(1,), max_tokens=5, grammar_only_ids=(marker,))
    opened = open_sequence(call, EOS + 1, 100)
    opened.grammar = grammars.start('start: "m"', start)
    liked = torch.zeros(1, EOS + 1)
    liked[0, [marker, other]] = torch.tensor([9.0, 8.0])
    assert choose(liked.clone(), [opened], grammars) == [other]
    opened.grammar.accept(start)
    assert choose(liked.clone(), [opened], grammars) == [marker]
