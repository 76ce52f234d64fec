"""Each model output of `model_outputs.jsonl` becomes what is written beside it, however its stream is cut.

One case a line: `output` is what the model wrote, markers as control tokens; a list holds besides
`{"text": ...}`, ordinary text that spells markers, and `{"hex": ...}`, raw bytes. `calls` are names and
arguments. What has no `ids_only` must come out the same from its text alone.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from perilune.chat.messages import (
    Assembler,
    Event,
    Finished,
    TextDelta,
    ThinkingDelta,
    Tool,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from perilune.chat.parsing import StreamParser
from perilune.chat.parsing_spelling import split_markers
from perilune.chat.tokenizer import Tokenizer

Case = dict[str, Any]
CASES: list[Case] = [
    json.loads(line) for line in (Path(__file__).parent / "model_outputs.jsonl").read_text().splitlines()
]
SEARCH = Tool(
    name="search",
    parameters={"type": "object", "properties": {"path": {}, "name": {}}, "required": ["path", "name"]},
)
WRITE = Tool(name="write", parameters={"type": "object", "properties": {"path": {}, "text": {}}})
TOOLS = {"both": (SEARCH, WRITE), "one": (SEARCH,), "none": ()}
FIRST = 5

by_name = pytest.mark.parametrize("case", [pytest.param(case, id=case["case"]) for case in CASES])


def ids_of(case: Case, tokenizer: Tokenizer) -> list[int]:
    pieces = case["output"]
    names = "|".join(map(re.escape, tokenizer.specials))
    ids: list[int] = []
    for piece in [pieces] if isinstance(pieces, str) else pieces:
        if isinstance(piece, dict):
            ids += tokenizer.encode(piece["text"]) if "text" in piece else list(bytes.fromhex(piece["hex"]))
            continue
        for part in re.split(f"({names})", piece):
            special = tokenizer.specials.get(part)
            ids += tokenizer.encode(part) if special is None else [special]
    return ids


def parser_of(case: Case, tokenizer: Tokenizer) -> StreamParser:
    tools = TOOLS[case.get("tools", "both")]
    return StreamParser(tokenizer, thinking=case["thinking"], first_call=FIRST, tools=tools)


def joined(events: Iterable[Event]) -> list[Event]:
    """The events with deltas that follow each other made one: how they were cut is no difference."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        match last, event:
            case TextDelta(), TextDelta():
                out[-1] = TextDelta(last.text + event.text)
            case ThinkingDelta(), ThinkingDelta():
                out[-1] = ThinkingDelta(last.text + event.text)
            case ToolCallDelta(), ToolCallDelta() if last.index == event.index:
                out[-1] = ToolCallDelta(last.index, last.arguments + event.arguments)
            case _:
                out.append(event)
    return out


def expected(case: Case) -> list[Event]:
    events: list[Event] = [ThinkingDelta(case["reasoning"])] if case["reasoning"] else []
    events += [TextDelta(case["content"])] if case["content"] else []
    for place, (name, arguments) in enumerate(case["calls"]):
        events.append(ToolCallStarted(place, f"functions.{name}:{FIRST + place}", name))
        events.append(ToolCallDelta(place, arguments))
    return events


def fed_ids(case: Case, tokenizer: Tokenizer, portions: Iterable[list[int]]) -> list[Event]:
    parser = parser_of(case, tokenizer)
    events = [event for portion in portions for event in parser.feed(portion)]
    return joined([*events, *parser.close()])


def fed_text(case: Case, tokenizer: Tokenizer, portions: Iterable[str]) -> list[Event]:
    parser = parser_of(case, tokenizer)
    events = [event for portion in portions for event in parser.feed_text(portion)]
    return joined([*events, *parser.close()])


def cuts(length: int) -> Iterator[list[int]]:
    """Where a stream is cut: into single pieces and equal portions (all others: test_every_split.py)."""
    for size in (1, 2, 3, 7):
        yield [*range(0, length, size), length]


@by_name
def test_it_becomes_what_is_written_beside_it(case: Case, small: Tokenizer) -> None:
    parser = parser_of(case, small)
    events = parser.feed(ids_of(case, small)) + parser.close()
    assert joined(events) == expected(case)
    assert parser.truncated == case.get("truncated", False)
    assert parser.called == bool(case["calls"])
    assembler = Assembler()
    for event in (*events, Finished("stop", Usage())):
        assembler.add(event)
    message = assembler.completion().message
    assert (message.reasoning, message.content) == (case["reasoning"], case["content"])


@by_name
def test_portions_of_its_tokens_give_the_same_events(case: Case, small: Tokenizer) -> None:
    ids = ids_of(case, small)
    for places in cuts(len(ids)):
        portions = [ids[start:end] for start, end in pairwise(places)]
        assert fed_ids(case, small, portions) == expected(case), places


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case["case"]) for case in CASES if "ids_only" not in case]
)
def test_portions_of_its_text_give_the_same_events(case: Case, small: Tokenizer) -> None:
    text = case["output"]
    for places in cuts(len(text)):
        portions = [text[start:end] for start, end in pairwise(places)]
        assert fed_text(case, small, portions) == expected(case), places


def test_the_official_tokenizer_gives_the_same_events(official: Tokenizer) -> None:
    for case in CASES:
        if any(isinstance(piece, dict) and "hex" in piece for piece in case["output"]):
            continue
        ids = ids_of(case, official)
        for size in (1, 3, len(ids) or 1):
            portions = [ids[start : start + size] for start in range(0, len(ids), size)]
            assert fed_ids(case, official, portions) == expected(case), case["case"]


def test_the_corpus_is_large_and_each_case_is_its_own() -> None:
    assert len({case["case"] for case in CASES}) == len(CASES) >= 200
    assert len({json.dumps([case["thinking"], case["output"], case.get("tools")]) for case in CASES}) == len(
        CASES
    )


def test_a_marker_is_held_back_until_it_is_one_or_is_not() -> None:
    names = ("<think>", "</think>", "<|im_end|>")
    assert split_markers("a<think>b", names) == ["a", "<think>", "b", ""]
    assert split_markers("a<th", names) == ["a", "<th"]
    assert split_markers("a<<", names) == ["a<", "<"]
    assert split_markers("a<x", names) == ["a<x", ""]
    assert split_markers("<|im_end|>", names) == ["<|im_end|>", ""]
    assert split_markers("", names) == [""]
