"""Grammars bind a model that says nothing sensible by itself."""

from __future__ import annotations

import re
from typing import Any

import pytest

from perilune.engine.loop import Engine
from perilune.engine.protocol import Chunk, EngineOptions, Failed, Generate, Vocabulary
from perilune.model.tiny import SPECIAL_TOKENS, TINY, random_decoder

SPECIALS = range(256, 256 + len(SPECIAL_TOKENS))
EOS = 256 + SPECIAL_TOKENS.index("<|im_end|>")
THINK_END = 256 + SPECIAL_TOKENS.index("</think>")
CALL_BEGIN = 256 + SPECIAL_TOKENS.index("<|tool_call_begin|>")
CALL_END = 256 + SPECIAL_TOKENS.index("<|tool_call_end|>")
TOKENS = [*[bytes([byte]) for byte in range(256)], *[name.encode() for name in SPECIAL_TOKENS]]


@pytest.fixture(scope="module")
def engine() -> Engine:
    vocabulary = Vocabulary(tokens=tuple(TOKENS), special_ids=tuple(SPECIALS), eos_id=EOS)
    return Engine(
        random_decoder(TINY), EngineOptions(checkpoint="", threads=1, cache_tokens=4000), vocabulary
    )


def generate(engine: Engine, **options: Any) -> tuple[list[int], str | None]:
    refused = engine.submit(Generate(**({"id": 1, "prompt": (1, 2), "stop_ids": (EOS,)} | options)))
    assert refused == []
    tokens: list[int] = []
    end = None
    while engine.busy:
        for reply in engine.step():
            assert isinstance(reply, Chunk), reply
            tokens += reply.token_ids
            end = reply.finish
    return tokens, end


def text(tokens: list[int]) -> bytes:
    return b"".join(TOKENS[token] for token in tokens)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_output_fits_the_grammar_and_ends_with_it(engine: Engine, temperature: float) -> None:
    grammar = 'start: <|tool_call_begin|> "rename:" /[a-z]{3,5}/ <|tool_call_end|>'
    tokens, end = generate(engine, grammar=grammar, max_tokens=40, temperature=temperature, seed=4)
    assert end == "stop"
    assert (tokens[0], tokens[-2], tokens[-1]) == (CALL_BEGIN, CALL_END, EOS)
    assert re.fullmatch(rb"rename:[a-z]{3,5}", text(tokens[1:-2]))


def test_specials_cannot_come_out_of_text_rules(engine: Engine) -> None:
    tokens, _ = generate(engine, grammar="start: /(.|\\n){30,40}/", max_tokens=60)
    assert all(token < 256 for token in tokens[:-1])


def test_a_json_schema_holds(engine: Engine) -> None:
    # A random model would put white space for ever where it may.
    schema = '{"enum": [{"path": "a.py"}], "x-guidance": {"whitespace_flexible": false}}'
    tokens, end = generate(engine, grammar=f"start: %json {schema}", max_tokens=40)
    assert (text(tokens[:-1]), end) == (b'{"path":"a.py"}', "stop")


def test_the_end_may_come_early_where_the_grammar_allows_it(engine: Engine) -> None:
    """A grammar that is satisfied but could go on lets the model choose its end."""
    for seed in range(30):
        tokens, end = generate(engine, grammar="start: /[a-z]*/", max_tokens=400, temperature=1.5, seed=seed)
        if end == "stop":
            break
    assert tokens[-1] == EOS
    assert re.fullmatch(rb"[a-z]*", text(tokens[:-1]))


def test_max_tokens_cuts_a_grammar_short(engine: Engine) -> None:
    tokens, end = generate(engine, grammar='start: "abcdef"', max_tokens=4)
    assert (text(tokens), end) == (b"abcd", "length")
    tokens, end = generate(engine, grammar='start: "abcd"', max_tokens=4)
    assert (text(tokens), end) == (b"abcd", "length")


def test_the_grammar_waits_for_its_id(engine: Engine) -> None:
    free, _ = generate(engine, max_tokens=12)
    after = free[5]
    tokens, end = generate(engine, max_tokens=40, grammar='start: "ok"', grammar_after_id=after)
    assert tokens == [*free[: free.index(after) + 1], *b"ok", EOS]
    assert end == "stop"
    never, end = generate(engine, max_tokens=12, grammar='start: "ok"', grammar_after_id=THINK_END)
    assert (never, end) == (free, "length")


def test_a_bad_grammar_fails_its_own_call_only(engine: Engine) -> None:
    assert engine.submit(Generate(id=1, prompt=(1, 2), max_tokens=3)) == []
    (refused,) = engine.submit(Generate(id=2, prompt=(1, 2), max_tokens=3, grammar="start: ("))
    assert isinstance(refused, Failed)
    assert (refused.id, refused.code, refused.field) == (2, "invalid_request_error", "grammar")
    chunks = [reply for _ in range(3) for reply in engine.step()]
    assert [chunk.id for chunk in chunks] == [1, 1, 1]


def test_a_schema_that_cannot_be_is_named_without_our_grammar_around_it(engine: Engine) -> None:
    grammar = 'start: %json {"type": "nonsense"}'
    (refused,) = engine.submit(Generate(id=1, prompt=(1, 2), max_tokens=3, grammar=grammar))
    assert isinstance(refused, Failed)
    assert "nonsense" in refused.message
    assert not any(ours in refused.message for ours in ("start", "%json", "|", "at 1("))


def test_a_grammar_whose_only_way_is_banned_fails(engine: Engine) -> None:
    engine.submit(Generate(id=1, prompt=(1, 2), max_tokens=3, grammar='start: "a"', banned_ids=(ord("a"),)))
    (failed,) = engine.step()
    assert isinstance(failed, Failed)
    assert failed.field == "grammar"
    assert not engine.busy


def test_neighbours_do_not_mix(engine: Engine) -> None:
    """Many grammars and free calls in one batch give what each gives alone."""
    options: list[dict[str, Any]] = [
        {"grammar": f'start: "{letter}" /[0-9]{{4}}/'} if letter < "f" else {} for letter in "abcdefgh"
    ]
    alone = [generate(engine, max_tokens=9, **each)[0] for each in options]
    for id, each in enumerate(options):
        call = Generate(id=id, prompt=(1, 2), stop_ids=(EOS,), max_tokens=9, **each)
        assert engine.submit(call) == []
    together: dict[int, list[int]] = {}
    while engine.busy:
        for reply in engine.step():
            assert isinstance(reply, Chunk)
            together.setdefault(reply.id, []).extend(reply.token_ids)
    assert [together[id] for id in range(8)] == alone
