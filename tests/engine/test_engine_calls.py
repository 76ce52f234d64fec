"""Calls through the whole engine but the process: what each one gets and what it leaves behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perilune.engine.loop import Engine
from perilune.engine.protocol import Chunk, EngineOptions, Failed, Generate, Reply, Vocabulary
from perilune.errors import ConfigError, EngineError
from perilune.model.tiny import TINY, random_decoder

NO_BYTES = Vocabulary(tokens=(), special_ids=(), eos_id=0)
POISON = 200


def make(**options: Any) -> Engine:
    wanted = {"checkpoint": "", "threads": 1, "cache_tokens": 400, "block_size": 4} | options
    return Engine(random_decoder(), EngineOptions(**wanted), NO_BYTES)


def call(id: int = 1, prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 6, **more: Any) -> Generate:
    return Generate(id=id, prompt=prompt, max_tokens=max_tokens, **more)


def finish(engine: Engine) -> dict[int, list[Reply]]:
    replies: dict[int, list[Reply]] = {}
    while engine.busy:
        for reply in engine.step():
            assert isinstance(reply, Chunk | Failed)
            assert reply.id is not None
            replies.setdefault(reply.id, []).append(reply)
    return replies


def answer(engine: Engine, one: Generate) -> tuple[list[int], list[Any]]:
    assert engine.submit(one) == []
    chunks = finish(engine)[one.id]
    return [token for chunk in chunks for token in chunk.token_ids], chunks  # type: ignore[union-attr]


def test_chunks_say_length_or_stop_and_the_stop_id_is_given_out() -> None:
    engine = make()
    tokens, chunks = answer(engine, call())
    assert len(tokens) == 6
    assert [chunk.finish for chunk in chunks] == [None] * 5 + ["length"]
    stop = tokens[3]
    shorter, chunks = answer(engine, call(2, stop_ids=(stop,)))
    assert shorter == tokens[: tokens.index(stop) + 1]
    assert chunks[-1].finish == "stop"


def test_cached_tokens_are_exact_and_told_once() -> None:
    engine = make()
    prompt = tuple(range(10, 21))
    output, chunks = answer(engine, call(1, prompt, max_tokens=8))
    assert [(chunk.prompt_tokens, chunk.cached_tokens) for chunk in chunks[:2]] == [(11, 0), (0, 0)]
    # The next turn: prompt, output and more. The last output token was never computed: 18 tokens, 4 blocks.
    _, chunks = answer(engine, call(2, (*prompt, *output, 5, 6), max_tokens=1))
    assert (chunks[0].prompt_tokens, chunks[0].cached_tokens) == (21, 16)
    _, chunks = answer(engine, call(3, prompt, max_tokens=1, cache_salt="other tenant"))
    assert chunks[0].cached_tokens == 0
    assert engine.stats().tokens_from_cache == 16
    assert engine.stats().tokens_prefilled == 11 + 5 + 11


def test_non_finite_logits_stop_only_that_call() -> None:
    engine = make()
    engine._runner._model.model.embed_tokens.weight[POISON] = torch.nan
    clean = (1, 2, 3, 4, 5, 6)
    alone, _ = answer(make(), call(9, clean))
    for id, prompt in ((1, clean), (2, (1, 2, 3, 4, POISON, 6, 7, 8, 9)), (3, (1, 2, 3, 4, 5, 6, 7))):
        engine.submit(call(id, prompt, banned_ids=(POISON,)))
    replies = finish(engine)
    (failed,) = replies[2]
    assert isinstance(failed, Failed)
    assert failed.code == "non_finite_logits"
    assert [token for chunk in replies[1] for token in chunk.token_ids] == alone  # type: ignore[union-attr]
    assert replies[3][-1].finish == "length"  # type: ignore[union-attr]
    # Blocks that held NaN are used again and harm nobody.
    for id in range(10, 40):
        tokens, _ = answer(engine, call(id, (id,) * 17, max_tokens=1))
        assert len(tokens) == 1
    assert answer(engine, call(50, clean))[0] == alone
    engine.stats()


def test_an_aborted_call_ends_where_it_stands() -> None:
    engine = make(max_sequences=1)
    engine.submit(call(1, max_tokens=50))
    engine.submit(call(2, max_tokens=3))
    engine.step()
    (running,) = engine.abort(1)
    (waiting,) = engine.abort(2)
    assert isinstance(running, Chunk)
    assert isinstance(waiting, Chunk)
    assert (running.finish, waiting.finish) == ("aborted", "aborted")
    assert waiting.prompt_tokens == 3
    assert engine.abort(1) == []
    assert not engine.busy
    assert engine.stats().blocks_used == 0


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"prompt": ()}, "invalid_request_error", "prompt"),
        ({"prompt": (1, TINY.vocab_size)}, "invalid_request_error", "prompt"),
        ({"banned_ids": (-1,)}, "invalid_request_error", "banned_ids"),
        ({"max_tokens": 0}, "invalid_request_error", "max_tokens"),
        ({"temperature": float("nan")}, "invalid_request_error", "temperature"),
        ({"temperature": -0.1}, "invalid_request_error", "temperature"),
        ({"top_p": 0.0}, "invalid_request_error", "top_p"),
        ({"prompt": tuple(range(200)), "max_tokens": 201}, "context_length_exceeded", None),
        ({"grammar": 'start: "a"'}, "config_error", "vocabulary"),
    ],
)
def test_a_bad_call_is_refused_at_once(change: dict[str, Any], code: str, field: str | None) -> None:
    engine = make()
    (refused,) = engine.submit(call(**({"prompt": (1,)} | change)))
    assert isinstance(refused, Failed)
    assert (refused.id, refused.code, refused.field) == (1, code, field)
    assert refused.mend
    assert not engine.busy


def test_the_context_ends_where_the_cache_does() -> None:
    assert make(cache_tokens=403).ready.max_context == 400
    assert make(max_context=50).ready.max_context == 50
    with pytest.raises(ConfigError, match="cache_tokens"):
        make(cache_tokens=3)
    engine = make()
    tokens, _ = answer(engine, call(1, tuple(range(200)) + (1,) * 150, max_tokens=50))
    assert len(tokens) == 50


def test_a_vocabulary_of_another_model_is_refused() -> None:
    other = Vocabulary(tokens=(b"x",) * (TINY.vocab_size + 1), special_ids=(), eos_id=0)
    with pytest.raises(ConfigError, match="vocabulary"):
        Engine(random_decoder(), EngineOptions(checkpoint=""), other)


def test_wrong_books_are_noticed() -> None:
    engine = make()
    engine.submit(call())
    engine.step()
    engine._cache._references[3] += 1
    with pytest.raises(EngineError, match="bookkeeping"):
        engine.stats()
