"""What is rendered, parsed and rendered again is the same prompt, for random conversations."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perilune.chat.messages import Assembler, Finished, Message, Tool, ToolCall, Usage
from perilune.chat.parsing import StreamParser
from perilune.chat.parsing_spelling import MISSPELT_SECTION
from perilune.chat.template import call_id, encode, next_call_index, render
from perilune.chat.tokenizer import (
    END_THINK,
    IM_ASSISTANT,
    IM_END,
    IM_MIDDLE,
    SECTION_BEGIN,
    THINK,
    Tokenizer,
)
from perilune.chat.variants import K2_THINKING, K25, K26, Variant

SPELT = st.sampled_from(
    (THINK, END_THINK, SECTION_BEGIN, IM_END, "<|tool_call_", "[EOS]", "🌙", "\n\n", " <")
)
PLAIN = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
TEXT = st.lists(SPELT | PLAIN, max_size=4).map("".join)
NAME = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_.\-]{0,12}", fullmatch=True).map(str)
VARIANT = st.sampled_from((K26, K25, K2_THINKING))


def _arguments(draw: st.DrawFn) -> str:
    return draw(
        st.sampled_from(("{}", '{"a": 1}', '{"é":"\\ud83c\\udf19"}', "{broken")) | TEXT.filter(str.strip)
    )


@st.composite
def answers(draw: st.DrawFn, first: int) -> Message:
    """What a model may say, in the form in which it is kept: reasoning does not end in blanks, blank text
    before calls is gone, an answer is not empty."""
    names = draw(st.lists(NAME, max_size=3))
    calls = tuple(
        ToolCall(call_id(name, first + place), name, _arguments(draw)) for place, name in enumerate(names)
    )
    content = draw(TEXT.filter(lambda text: not text.rstrip().endswith(MISSPELT_SECTION)))
    if calls and not content.strip():
        content = ""
    reasoning = draw(TEXT).rstrip() or None
    return Message(role="assistant", content=content, reasoning=reasoning, tool_calls=calls)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    messages: list[Message] = []
    if draw(st.booleans()):
        messages.append(Message(role="system", content=draw(TEXT)))
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message(role="user", content=draw(TEXT)))
        for _ in range(draw(st.integers(1, 2))):
            answer = draw(answers(next_call_index(messages)))
            messages.append(answer)
            for call in answer.tool_calls:
                name = draw(st.none() | NAME)
                messages.append(Message(role="tool", content=draw(TEXT), tool_call_id=call.id, name=name))
    return tuple(messages)


def answers_within(ids: list[int], tokenizer: Tokenizer) -> list[list[int]]:
    """The tokens of each assistant turn, from behind its opening think mark through its end."""
    found = []
    for place, token in enumerate(ids):
        if token == tokenizer.special(IM_ASSISTANT):
            start = ids.index(tokenizer.special(IM_MIDDLE), place) + 2
            found.append(ids[start : ids.index(tokenizer.special(IM_END), start) + 1])
    return found


def parsed(ids: list[int], first: int, tokenizer: Tokenizer) -> Message:
    parser = StreamParser(tokenizer, thinking=True, first_call=first)
    assembler = Assembler()
    for event in (*parser.feed(ids), *parser.close(), Finished("stop", Usage())):
        assembler.add(event)
    return assembler.completion().message


@settings(max_examples=150, deadline=None)
@given(messages=conversations(), keep=st.booleans(), variant=VARIANT)
def test_render_parse_render_is_the_identity(
    small: Tokenizer, messages: tuple[Message, ...], keep: bool, variant: Variant
) -> None:
    tools = (Tool(name="f"),)

    def ids_of(conversation: tuple[Message, ...]) -> list[int]:
        pieces = render(
            conversation, tools, thinking=True, keep_thinking=keep, generate=False, variant=variant
        )
        return encode(pieces, small)

    once = ids_of(messages)
    turns = iter(answers_within(once, small))
    again: list[Message] = []
    for message in messages:
        if message.role == "assistant":
            message = parsed(next(turns), next_call_index(again), small)
        again.append(message)
    assert ids_of(tuple(again)) == once
    if keep and variant.can_keep:
        assert tuple(again) == messages
    else:
        assert [m.tool_calls for m in again] == [m.tool_calls for m in messages]
        assert [m.content for m in again] == [m.content for m in messages]


@settings(max_examples=60, deadline=None)
@given(messages=conversations(), thinking=st.booleans(), variant=VARIANT)
def test_a_prompt_goes_on_as_its_conversation_does(
    small: Tokenizer, messages: tuple[Message, ...], thinking: bool, variant: Variant
) -> None:
    """A loop's prompt begins with the prompt before it: what was computed for that is computed once."""
    last = max(place for place, one in enumerate(messages) if one.role == "assistant")
    if not messages[last].tool_calls:
        return
    options = {"thinking": thinking, "variant": variant}
    before = encode(render(messages[:last], **options, generate=False), small)
    after = encode(render(messages, **options), small)
    assert after[: len(before)] == before


@settings(max_examples=60, deadline=None)
@given(messages=conversations(), seed=st.integers(0, 9))
def test_foreign_call_ids_make_the_same_prompt(
    small: Tokenizer, messages: tuple[Message, ...], seed: int
) -> None:
    foreign = {
        call.id: f"call_{seed}{place}"
        for place, call in enumerate(call for message in messages for call in message.tool_calls)
    }
    renamed = tuple(
        msgspec.structs.replace(
            message,
            tool_calls=tuple(
                msgspec.structs.replace(call, id=foreign[call.id]) for call in message.tool_calls
            ),
            tool_call_id=message.tool_call_id and foreign[message.tool_call_id],
        )
        for message in messages
    )
    assert render(renamed, thinking=True) == render(messages, thinking=True)


@pytest.mark.parametrize("variant", [K26, K25, K2_THINKING], ids=lambda variant: variant.name)
def test_the_official_tokenizer_goes_round_too(official: Tokenizer, variant: Variant) -> None:
    call = ToolCall("functions.f:0", "f", '{"x": "é 月 <|im_end|>"}')
    answer = Message(
        role="assistant", content="See </think>: 月.", reasoning="Hm\n <think>", tool_calls=(call,)
    )
    ids = encode(render((answer,), thinking=True, generate=False, variant=variant), official)
    turn = answers_within(ids, official)[0]
    assert parsed(turn, 0, official) == answer
