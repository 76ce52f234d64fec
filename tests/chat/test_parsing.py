"""Model output to events: every way K2 is known to write, in any portions, never an exception."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perilune.chat.messages import (
    Assembler,
    Event,
    Finished,
    Message,
    TextDelta,
    ThinkingDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from perilune.chat.parsing import StreamParser
from perilune.chat.parsing_calls import call_name, tool_by_arguments
from perilune.chat.tokenizer import (
    CALL_ARGUMENTS,
    CALL_BEGIN,
    CALL_END,
    END_THINK,
    IM_END,
    SECTION_BEGIN,
    SECTION_END,
    THINK,
    Tokenizer,
)

SEARCH = Tool(
    name="search",
    parameters={
        "type": "object",
        "properties": {"path": {}, "name": {}},
        "required": ["path", "name"],
    },
)
WRITE = Tool(name="write", parameters={"type": "object", "properties": {"path": {}, "text": {}}})
BOTH = (SEARCH, WRITE)
MARKERS = (THINK, END_THINK, SECTION_BEGIN, SECTION_END, CALL_BEGIN, CALL_ARGUMENTS, CALL_END, IM_END)


def ids_of(tokenizer: Tokenizer, *pieces: str | bytes) -> list[int]:
    """Pieces that are markers become their ids; bytes become byte tokens, the rest is text."""
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            ids.extend(piece)
        elif piece in MARKERS or piece in tokenizer.specials:
            ids.append(tokenizer.special(piece))
        else:
            ids.extend(tokenizer.encode(piece))
    return ids


def whole(events: list[Event]) -> Message:
    assembler = Assembler()
    for event in (*events, Finished("stop", Usage())):
        assembler.add(event)
    return assembler.completion().message


def parse(
    tokenizer: Tokenizer,
    *pieces: str | bytes,
    thinking: bool = False,
    first_call: int = 0,
    tools: tuple[Tool, ...] = BOTH,
) -> Message:
    parser = StreamParser(tokenizer, thinking=thinking, first_call=first_call, tools=tools)
    return whole(parser.feed(ids_of(tokenizer, *pieces)) + parser.close())


def call(header: str, arguments: str) -> tuple[str, ...]:
    return CALL_BEGIN, header, CALL_ARGUMENTS, arguments, CALL_END


def section(*calls: tuple[str, ...]) -> tuple[str, ...]:
    return SECTION_BEGIN, *(piece for one in calls for piece in one), SECTION_END


SEARCHED = ToolCall("functions.search:0", "search", '{"path": "a"}')


def test_thinking_text_and_calls_in_order(small: Tokenizer) -> None:
    parser = StreamParser(small, thinking=True, first_call=4, tools=BOTH)
    pieces = ("Hm. ", END_THINK, "Let me see.", *section(call("functions.search:4", "{}")), IM_END)
    events = parser.feed(ids_of(small, *pieces)) + parser.close()
    assert events == [
        ThinkingDelta("Hm."),
        TextDelta("Let me see."),
        ToolCallStarted(0, "functions.search:4", "search"),
        ToolCallDelta(0, "{}"),
    ]
    assert parser.called
    assert not parser.truncated
    assert parser.reasoning_tokens == 4


def test_several_calls_get_positions_and_counted_ids(small: Tokenizer) -> None:
    calls = section(call("functions.search:9", '{"path": "a"}'), call("functions.write:9", '{"text": ""}'))
    message = parse(small, *calls, IM_END, first_call=7)
    assert message.tool_calls == (
        ToolCall("functions.search:7", "search", '{"path": "a"}'),
        ToolCall("functions.write:8", "write", '{"text": ""}'),
    )


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param((*section(call("functions.search:0", '{"path": "a"}')), IM_END), id="regular"),
        pytest.param((*call("functions.search:0", '{"path": "a"}'), IM_END), id="no section"),
        pytest.param(
            (CALL_BEGIN, "search:0", CALL_ARGUMENTS, '{"path": "a"}', SECTION_END, IM_END),
            id="call not closed",
        ),
        pytest.param(
            (SECTION_BEGIN, CALL_BEGIN, "search:0", CALL_ARGUMENTS, '{"path": "a"}', IM_END),
            id="nothing closed",
        ),
        pytest.param(
            (SECTION_BEGIN, CALL_BEGIN, "garb", *call("search:0", '{"path": "a"}'), IM_END),
            id="begin discards an incomplete call",
        ),
        pytest.param(
            (SECTION_BEGIN, "search:0", CALL_ARGUMENTS, '{"path": "a"}', CALL_END, IM_END), id="no call begin"
        ),
        pytest.param(
            (" \n", SECTION_BEGIN, "\n", *call("\nfunctions.search:0 ", '{"path": "a"}'), "\nDone.", IM_END),
            id="text around calls",
        ),
        pytest.param(
            (
                "<|tool_call_section_begin|>\n",
                *call("search:0", '{"path": "a"}'),
                "<|tool_call_section_end|>",
            ),
            id="singular spelling",
        ),
        pytest.param(
            (END_THINK, THINK, *section(call("search:0", '{"path": "a"}')), "more", "[EOS]", "even more"),
            id="stray think markers and a late text",
        ),
    ],
)
def test_one_call_however_it_is_written(small: Tokenizer, pieces: tuple[str, ...]) -> None:
    assert parse(small, *pieces) == Message(role="assistant", content="", tool_calls=(SEARCHED,))


def test_calls_end_the_thinking_without_its_marker(small: Tokenizer) -> None:
    message = parse(small, THINK, "I search.\n\n", *section(call("search:0", '{"path": "a"}')), thinking=True)
    assert message.reasoning == "I search."
    assert message.tool_calls == (SEARCHED,)


def test_text_before_calls_is_kept_and_blank_text_is_not(small: Tokenizer) -> None:
    calls = section(call("search:0", '{"path": "a"}'))
    assert parse(small, "Look: ", *calls).content == "Look: "
    assert parse(small, "\n\n", *calls).content == ""
    assert parse(small, "\n\n", IM_END).content == "\n\n"


def test_end_and_begin_in_one_portion_lose_nothing(small: Tokenizer) -> None:
    parser = StreamParser(small, thinking=False, first_call=0, tools=BOTH)
    events = parser.feed(ids_of(small, SECTION_BEGIN, CALL_BEGIN, "search:0", CALL_ARGUMENTS, '{"a": '))
    events += parser.feed(ids_of(small, "1}", CALL_END, CALL_BEGIN, "write:1", CALL_ARGUMENTS, '{"b": 2}'))
    events += parser.feed(ids_of(small, CALL_END, SECTION_END, IM_END)) + parser.close()
    assert [c.arguments for c in whole(events).tool_calls] == ['{"a": 1}', '{"b": 2}']


def test_a_begin_within_arguments_closes_the_call(small: Tokenizer) -> None:
    pieces = (CALL_BEGIN, "search:0", CALL_ARGUMENTS, '{"a": 1}', *call("write:1", "{}"))
    assert [c.arguments for c in parse(small, *pieces).tool_calls] == ['{"a": 1}', "{}"]


@pytest.mark.parametrize("arguments", ["", " \n"])
def test_empty_arguments_become_an_object(small: Tokenizer, arguments: str) -> None:
    assert parse(small, *section(call("search:0", arguments))).tool_calls[0].arguments == "{}"
    cut = (CALL_BEGIN, "search:0", CALL_ARGUMENTS, arguments)
    assert parse(small, *cut).tool_calls[0].arguments == "{}"


def test_cut_arguments_are_passed_on_and_marked(small: Tokenizer) -> None:
    parser = StreamParser(small, thinking=False, first_call=0)
    events = parser.feed(ids_of(small, *call("search:0", '{"path": "a'))[:-1]) + parser.close()
    assert whole(events).tool_calls[0].arguments == '{"path": "a'
    assert parser.truncated


def test_markers_spelt_in_text_stay_text(small: Tokenizer) -> None:
    spelt = f"{END_THINK} {SECTION_BEGIN}{CALL_BEGIN}search:0{CALL_ARGUMENTS}{{}}{CALL_END} {IM_END}"
    parser = StreamParser(small, thinking=False, first_call=0)
    events = parser.feed(small.encode(spelt)) + parser.close()
    assert events == [TextDelta(spelt)]
    inside = StreamParser(small, thinking=False, first_call=0)
    ids = ids_of(small, CALL_BEGIN, "f:0", CALL_ARGUMENTS)
    ids += small.encode(spelt) + ids_of(small, THINK, "x", CALL_END)
    assert whole(inside.feed(ids) + inside.close()).tool_calls[0].arguments == f"{spelt}<think>x"


def test_what_only_begins_like_a_marker_is_shown(small: Tokenizer) -> None:
    assert parse(small, "a <|tool_call_section", IM_END).content == "a <|tool_call_section"
    assert parse(small, "a <|tool_call_section_begin|> b").content == "a <|tool_call_section_begin|> b"
    assert parse(small, "if a <", "b").content == "if a <b"


def test_control_tokens_never_leak(small: Tokenizer) -> None:
    pieces = ("a", "<|im_user|>", "b", "<|media_pad|>", CALL_ARGUMENTS, "c", CALL_END, SECTION_END, "d")
    assert parse(small, *pieces).content == "abcd"
    assert parse(small, "a", thinking=True).reasoning == "a"
    reasoned = parse(small, "a", "<|im_middle|>", CALL_END, THINK, "b", thinking=True)
    assert (reasoned.reasoning, reasoned.content) == ("ab", "")


@pytest.mark.parametrize(
    "pieces",
    [
        (SECTION_BEGIN, "functions.search:0 {}", SECTION_END, IM_END),
        (CALL_BEGIN, "functions.search:0 {}", CALL_END, IM_END),
        (SECTION_BEGIN, CALL_BEGIN, "functions.search:0 {}"),
    ],
)
def test_a_section_without_a_usable_call_is_shown_as_text(small: Tokenizer, pieces: tuple[str, ...]) -> None:
    assert parse(small, *pieces) == Message(role="assistant", content="functions.search:0 {}")


def test_bytes_are_joined_across_tokens_and_broken_ones_replaced(small: Tokenizer) -> None:
    moon = "🌙".encode()
    parser = StreamParser(small, thinking=False, first_call=0)
    assert parser.feed(moon[:3]) == []
    assert parser.feed(moon[3:]) == [TextDelta("🌙")]
    assert parse(small, moon[:2], IM_END).content == "\ufffd"
    assert parse(small, b"\xff", "a").content == "\ufffda"
    cut = parse(small, moon[:2], END_THINK, moon[2:], moon, thinking=True)
    assert (cut.reasoning, cut.content) == ("\ufffd", "\ufffd\ufffd🌙")


def test_ids_outside_the_vocabulary_are_ignored(small: Tokenizer) -> None:
    parser = StreamParser(small, thinking=False, first_call=0)
    assert parser.feed([97, 10**9, -1, 98]) == [TextDelta("ab")]


def test_nothing_follows_the_end(small: Tokenizer) -> None:
    parser = StreamParser(small, thinking=False, first_call=0)
    assert parser.feed(ids_of(small, "a", IM_END, "b")) == [TextDelta("a")]
    assert parser.feed(ids_of(small, "c")) == parser.close() == parser.close() == []


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("functions.search:12", "search"),
        ("search:0", "search"),
        ("functions.search0", "search"),
        ("functionssearch0", "search"),
        ("functions.search", "search"),
        (" functions.\nsearch:3\n", "search"),
        ("functions.a-b.c_d:0", "a-b.c_d"),
        ("functions.ns:tool:7", "ns:tool"),
        ("functions.other:0", "other"),
        ("other", "other"),
        ("3", None),
        ("call00003", None),
        ("", None),
    ],
)
def test_names_in_headers(header: str, name: str | None) -> None:
    assert call_name(header, BOTH) == name


def test_a_counter_means_the_only_tool_or_the_best_fit(small: Tokenizer) -> None:
    assert call_name("3", (SEARCH,)) == "search"
    assert call_name("functions.f20", (Tool(name="f2"),)) == "f2"
    assert tool_by_arguments('{"path": 1, "text": 2}', BOTH) == "write"
    assert tool_by_arguments('{"path": 1, "name": 2}', BOTH) == "search"
    assert tool_by_arguments("{broken", BOTH) == "write"
    message = parse(small, *section(call("3", '{"path": "a", "text": "b"}'), call("call4", "")))
    assert [(c.id, c.name, c.arguments) for c in message.tool_calls] == [
        ("functions.write:0", "write", '{"path": "a", "text": "b"}'),
        ("functions.write:1", "write", "{}"),
    ]
    assert parse(small, *call("", "{}"), tools=()).tool_calls[0].name == "unknown"


def test_an_id_of_digits_without_end_does_not_slow_it_down() -> None:
    """Each way to cut them off was once tried: the square of their number, half a minute here."""
    begun = time.process_time()
    assert call_name("functions.search" + "1" * 200_000, BOTH) == "search" + "1" * 200_000
    assert time.process_time() - begun < 1


PIECE = st.one_of(
    st.sampled_from(MARKERS[:-1]),
    st.sampled_from(
        ["functions.search:0", "3", " ", "\n", "<|tool_call_section_begin|>", "<|tool", '{"a": 1}']
    ),
    st.text(max_size=6),
    st.binary(max_size=4),
    st.sampled_from(["<|im_user|>", "[PAD]", IM_END]),
)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), pieces=st.lists(PIECE, max_size=14), thinking=st.booleans())
def test_any_split_gives_the_same_answer(small: Tokenizer, data, pieces: list, thinking: bool) -> None:
    ids = ids_of(small, *pieces)
    at_once = StreamParser(small, thinking=thinking, first_call=0, tools=BOTH)
    expected = at_once.feed(ids) + at_once.close()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    split = StreamParser(small, thinking=thinking, first_call=0, tools=BOTH)
    events: list[Event] = []
    for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        events += split.feed(ids[start:end])
    events += split.close()
    assert whole(events) == whole(expected)
    assert split.reasoning_tokens == at_once.reasoning_tokens
    order = [type(event) for event in expected]
    assert order == sorted(order, key=rank)
    assert not any(event.text == "" for event in events if isinstance(event, TextDelta | ThinkingDelta))


def rank(kind: type) -> int:
    """Thinking, then text, then calls."""
    return {ThinkingDelta: 0, TextDelta: 1}.get(kind, 2)


def test_long_arguments_arrive_whole(official: Tokenizer) -> None:
    text = '{"text": "' + "lorem ipsum " * 20_000 + '"}'
    parser = StreamParser(official, thinking=False, first_call=0, tools=BOTH)
    ids = ids_of(official, *section(call("functions.write:0", text)), IM_END)
    events = [event for token in ids for event in parser.feed([token])]
    assert whole(events).tool_calls[0].arguments == text
