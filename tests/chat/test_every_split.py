"""However an output of the corpus is cut into pieces, the same events come of it: shown for every split.

An output of n tokens has 2^(n-1) splits, so they are not tried one by one. It is enough that, for every
two places `start` and `end`, the parser that has got the tokens before `start` singly and then gets all of
`start` to `end` as one piece tells the same, and *is* the same in all its parts, as the one that gets those
singly too. Then any split is, piece after piece, the same as single tokens (induction over its pieces).

Events are compared with deltas that follow each other joined: where a delta is cut is no difference.
Outputs up to SHORT are shown so in each test run and all of them by `make soak`; of the longer ones a test
run tries every start and every end, all pieces up to two tokens, and pairs at random.
"""

from __future__ import annotations

import codecs
import copy
import json
import time
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.chat.test_model_outputs import CASES, FIRST, Case, expected, fed_ids, fed_text, ids_of, parser_of

from perilune.chat.messages import Event, TextDelta, ThinkingDelta, ToolCallDelta, ToolCallStarted
from perilune.chat.parsing import StreamParser
from perilune.chat.tokenizer import Tokenizer
from perilune.model.tiny import write_tokenizer

SHORT = 40
RANDOM_PAIRS = 40
TEXT_CASES = [case for case in CASES if "ids_only" not in case]
Stream = Sequence[Any]
Pairs = Iterator[tuple[int, int]]


def feed(parser: StreamParser, piece: Stream) -> list[Event]:
    return parser.feed_text(piece) if isinstance(piece, str) else parser.feed(piece)


def copied(parser: StreamParser) -> StreamParser:
    """Another parser in the same state."""
    other = copy.copy(parser)
    other._events = []
    other._arguments = [*parser._arguments]
    other._decoder = codecs.getincrementaldecoder("utf-8")("replace")
    other._decoder.setstate(parser._decoder.getstate())
    return other


def state_of(parser: StreamParser) -> dict[str, Any]:
    """Everything that a parser is made of."""
    return {
        **vars(parser),
        "_decoder": parser._decoder.getstate(),
        "_events": tuple(parser._events),
        "_arguments": "".join(parser._arguments),
    }


def told(events: Sequence[Event]) -> str:
    """Events as a string that does not show where deltas were cut: each character behind its mark."""
    parts = []
    for event in events:
        match event:
            case ThinkingDelta(text):
                parts.append("".join(f"\ue000{character}" for character in text))
            case TextDelta(text):
                parts.append("".join(f"\ue001{character}" for character in text))
            case ToolCallStarted(index, id, name):
                parts.append(f"\ue002{index}\ue002{id}\ue002{name}\ue002")
            case ToolCallDelta(index, arguments):
                mark = chr(0xE100 + index)
                parts.append("".join(f"{mark}{character}" for character in arguments))
    return "".join(parts)


def check_pieces(case: Case, stream: Stream, tokenizer: Tokenizer, pairs: Pairs) -> int:
    """How many pieces were fed, each to a parser that had got what is before it singly."""
    parser = parser_of(case, tokenizer)
    parsers, states, telling, reached = [copied(parser)], [state_of(parser)], "", [0]
    for place in range(len(stream)):
        telling += told(feed(parser, stream[place : place + 1]))
        reached.append(len(telling))
        parsers.append(copied(parser))
        states.append(state_of(parser))
    assert telling + told(parser.close()) == told(expected(case))
    count = 0
    for start, end in pairs:
        count += 1
        one = copied(parsers[start])
        events = feed(one, stream[start:end])
        assert told(events) == telling[reached[start] : reached[end]], (start, end)
        assert state_of(one) == states[end], (start, end)
    return count


def every_pair(length: int) -> Pairs:
    return combinations(range(length + 1), 2)


def some_pairs(length: int, random: Random) -> Pairs:
    if length <= SHORT:
        yield from every_pair(length)
        return
    for place in range(1, length + 1):
        yield from ((0, place), (place - 1, length), (max(0, place - 2), place))
    for _ in range(RANDOM_PAIRS):
        start, end = sorted(random.sample(range(length + 1), 2))
        yield start, end


def by_name(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case["case"]) for case in cases])


@by_name(CASES)
def test_every_split_of_the_tokens(case: Case, small: Tokenizer) -> None:
    ids = ids_of(case, small)
    check_pieces(case, ids, small, some_pairs(len(ids), Random(1)))


@by_name(TEXT_CASES)
def test_every_split_of_the_text(case: Case, small: Tokenizer) -> None:
    text = case["output"]
    check_pieces(case, text, small, some_pairs(len(text), Random(2)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokens", "text"])
def test_every_split_of_every_output(kind: str, small: Tokenizer) -> None:
    pieces = 0
    for case in CASES if kind == "tokens" else TEXT_CASES:
        stream = ids_of(case, small) if kind == "tokens" else case["output"]
        count = check_pieces(case, stream, small, every_pair(len(stream)))
        assert count == len(stream) * (len(stream) + 1) // 2
        pieces += count
    print(f"{pieces:,} pieces of {kind}")
    assert pieces > 500_000


def test_splits_themselves(small: Tokenizer) -> None:
    """All 2^(n-1) splits where they are few, two cuts everywhere, and many cuts at random."""
    random = Random(3)
    for case in CASES:
        for stream, fed in ((ids_of(case, small), fed_ids), (case["output"], fed_text)):
            if fed is fed_text and "ids_only" in case:
                continue
            length = len(stream)
            inner = range(1, length)
            splits: list[Sequence[int]] = [
                sorted(random.sample(inner, min(k, len(inner)))) for k in (4, 9, 30)
            ]
            if length <= 8:
                splits += [cut for count in range(length) for cut in combinations(inner, count)]
            elif length <= 14:
                splits += combinations(inner, 2)
            for cuts in splits:
                pieces = [stream[start:end] for start, end in pairwise((0, *cuts, length))]
                assert fed(case, small, pieces) == expected(case), (case["case"], cuts)


def test_a_parser_that_minds_its_cuts_would_be_found(
    small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check itself can fail: here for a parser that does not hold back a marker's beginning."""
    whole = StreamParser.feed_text

    def careless(parser: StreamParser, text: str) -> list[Event]:
        events = whole(parser, text)
        text, parser._spelt = parser._spelt, ""
        if text:
            parser._write(text)
        return events + parser._drain()

    monkeypatch.setattr(StreamParser, "feed_text", careless)
    case = next(case for case in TEXT_CASES if "</think>" in case["output"])
    with pytest.raises(AssertionError):
        check_pieces(case, case["output"], small, every_pair(len(case["output"])))


# ---- what the reference lists as seen in practice

PITFALLS = {
    "9.1 <think> in reasoning is dropped": "pitfall: a think opened in the answer",
    "9.1 </think> ends reasoning": "closed, text, two calls",
    "9.1 no </think> before a section": "pitfall: think left open before a section",
    "9.1 no </think> before a bare call": "pitfall: think left open before a bare call",
    "9.1 stray </think> in content": "pitfall: think closed twice",
    "9.1 a bare call": "instant, no text, a bare call",
    "9.1 text between calls is suppressed": "pitfall: text between calls",
    "9.1 a second begin discards the header before it": "pitfall: a begin discards the header before it",
    "9.1 empty arguments": "instant, no text, an empty call",
    "9.1 a call closed by its section": "instant, no text, a call closed by its section",
    "9.1 a call closed by the end": "instant, no text, a call left open",
    "9.1 arguments cut off": "pitfall: arguments cut off",
    "9.1 text behind a section": "pitfall: text behind a section",
    "9.1 content before a section": "pitfall: text before a section is kept",
    "9.1 blank content before calls": "pitfall: blanks before calls",
    "9.1 trailing blanks of reasoning": "trailing blanks, text, two calls",
    "9.1 the singular section": "pitfall: singular section",
    "9.1 the singular section in open thinking": "pitfall: think left open before a singular section",
    "9.1 several markers in one piece": "pitfall: end and begin bundled",
    "9.2 functions.NAME:IDX": "instant, no text, one call",
    "9.2 NAME:0": "pitfall: id with no functions",
    "9.2 functionsNAME0": "pitfall: id with no dot, no colon",
    "9.2 functions.NAME0": "pitfall: id with no colon",
    "9.2 other characters in the name": "pitfall: id with a name with a colon",
    "9.2 dots and dashes in the name": "pitfall: id with a name with dots and dashes",
    "9.2 a bare counter, one tool": "pitfall: id: a bare counter, one tool",
    "9.2 a bare counter, by its arguments": "pitfall: id: a bare counter, arguments fit write",
    "9.2 call00003": "pitfall: id: a padded counter, arguments fit search",
    "9.2 a line break within the id": "pitfall: id with a line break within",
    "9.2 a foreign id": "pitfall: id with a foreign id",
    "9.3 nothing but reasoning": "pitfall: think left open to the end",
    "9.3 [EOS]": "pitfall: other ends: EOS",
    "9.3 [EOT]": "pitfall: other ends: EOT",
    "9.3 prompt-only tokens do not leak": "pitfall: control tokens in text",
    "11 only !!!!": "pitfall: exclamation marks of broken numbers",
    "11 static reasoning flag": "instant, text, one call",
    "11 missing opening tag": "closed, text, one call",
    "11 an opening tag all the same": "pitfall: K2-Thinking opens it itself",
    "11 reasoning ended by history": "pitfall: end within reasoning marks",
    "11 omitted </think> before tools": "pitfall: think left open before a section",
    "11 markers leak into content": "pitfall: end without begin",
    "11 arguments beyond a buffer": "pitfall: long arguments",
    "11 bundled end and begin": "pitfall: end and begin bundled",
    "11 content before a section lost": "instant, text, one call",
    "11 finish tool_calls with no name": "pitfall: id: no id at all, arguments fit search",
    "11 an empty turn of tools": "pitfall: empty section",
    "11 tool index": "pitfall: id with a high index",
    "11 required choice, foreign ids": "pitfall: id with a foreign id",
}
"""Section of the reference and pitfall -> the case that shows it."""


def test_each_pitfall_of_the_reference_is_a_case() -> None:
    known = [case["case"] for case in CASES]
    assert not [name for name in PITFALLS.values() if not any(one.endswith(name) for one in known)]


# ---- length


def test_long_arguments_arrive_whole_and_at_once(small: Tokenizer) -> None:
    """A buffer of 8 KB once cut them elsewhere, and a search through all of it with each token once hung."""
    arguments = json.dumps({"path": "x" * 100_000, "name": "</think>"})
    for text in (
        f"<|tool_call_begin|>functions.search:0<|tool_call_argument_begin|>{arguments}<|tool_call_end|>",
    ):
        case: Case = {"output": text, "thinking": False}
        ids = ids_of(case, small)
        for size in (1, 8192, len(ids)):
            parser = parser_of(case, small)
            portions = (ids[start : start + size] for start in range(0, len(ids), size))
            events = [event for portion in portions for event in parser.feed(portion)] + parser.close()
            assert events[0] == ToolCallStarted(0, f"functions.search:{FIRST}", "search")
            assert "".join(event.arguments for event in events[1:]) == arguments


@pytest.mark.parametrize(
    "before", ["", "a", "</think>", "</think><|tool_call_begin|>a:0<|tool_call_argument_begin|>"]
)
def test_blanks_without_end_do_not_slow_it_down(before: str, tmp_path: Path) -> None:
    """All that is held back was looked through again with each token: seconds here, now a tenth of one."""
    write_tokenizer([*(bytes((byte,)) for byte in range(256)), b" \n" * 128], tmp_path)
    parser = StreamParser(Tokenizer.load(tmp_path), thinking=True, first_call=0)
    parser.feed(ids_of({"output": before}, Tokenizer.load(tmp_path)))
    begun = time.process_time()
    for _ in range(6000):
        assert not parser.feed([256])
    assert time.process_time() - begun < 1.5
