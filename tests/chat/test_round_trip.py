"""What is rendered, parsed and rendered again is the same prompt, for random conversations."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chat.conversations import TEXT, Conversation, answers, conversations

from perilune.chat.jinja import JinjaTemplate
from perilune.chat.messages import Assembler, Event, Finished, Message, Request, Tool, Usage
from perilune.chat.parsing import StreamParser
from perilune.chat.placeholders import prompt_with_media
from perilune.chat.template import MEDIA_PAD, encode, next_call_index, prompt_ids, render, starts_thinking
from perilune.chat.tokenizer import END_THINK, IM_ASSISTANT, IM_END, IM_MIDDLE, THINK, Tokenizer
from perilune.chat.variants import K2_THINKING, K25, K26, Variant
from perilune.chat.wire import ChunkDecoder, ChunkEncoder, decode_request, encode_request

VARIANT = st.sampled_from((K26, K25, K2_THINKING))
TEMPLATES = Path(__file__).parent / "templates"


def answers_within(ids: list[int], tokenizer: Tokenizer, thinking: bool = True) -> list[list[int]]:
    """The tokens of each closed assistant turn, from behind what the prompt opens it with through its end."""
    marks = [tokenizer.special(name) for name in ((THINK,) if thinking else (THINK, END_THINK))]
    end = tokenizer.special(IM_END)
    found = []
    for place, token in enumerate(ids):
        if token == tokenizer.special(IM_ASSISTANT):
            start = ids.index(tokenizer.special(IM_MIDDLE), place) + 1
            assert ids[start : start + len(marks)] == marks
            if end in ids[start:]:
                found.append(ids[start + len(marks) : ids.index(end, start) + 1])
    return found


def events_of(
    ids: list[int], first: int, tokenizer: Tokenizer, tools: Sequence[Tool] = (), thinking: bool = True
) -> list[Event]:
    parser = StreamParser(tokenizer, thinking=thinking, first_call=first, tools=tools)
    return [*parser.feed(ids), *parser.close(), Finished("stop", Usage())]


def whole(events: Sequence[Event]) -> Message:
    assembler = Assembler()
    for event in events:
        assembler.add(event)
    return assembler.completion().message


def kept_reasoning(messages: Sequence[Message], thinking: bool, keep: bool, variant: Variant) -> list[str]:
    """The rule of the reference, in its own words: nothing up to the last answer without calls."""
    plain = [place for place, one in enumerate(messages) if one.role == "assistant" and not one.tool_calls]
    last = plain[-1] if plain and not (keep and variant.can_keep) else -1
    shown = thinking or not variant.can_switch
    return [one.reasoning or "" if shown and place > last else "" for place, one in enumerate(messages)]


def check_round_trip(
    tokenizer: Tokenizer, talk: Conversation, thinking: bool, keep: bool, variant: Variant
) -> None:
    shows = thinking or not variant.can_switch

    def ids_of(messages: Sequence[Message]) -> list[int]:
        pieces = render(
            messages,
            talk.tools,
            thinking=thinking,
            keep_thinking=keep,
            generate=False,
            variant=variant,
            video_times=talk.times,
        )
        return encode(pieces, tokenizer)

    once = ids_of(talk.messages)
    turns = iter(answers_within(once, tokenizer, shows))
    again: list[Message] = []
    for message in talk.messages:
        if message.role == "assistant":
            first = next_call_index(again)
            message = whole(events_of(next(turns), first, tokenizer, talk.tools, shows))
        again.append(message)
    assert ids_of(again) == once
    reasoning = kept_reasoning(talk.messages, thinking, keep, variant)
    assert tuple(again) == tuple(
        msgspec.structs.replace(message, reasoning=kept or None)
        for message, kept in zip(talk.messages, reasoning, strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(talk=conversations(), thinking=st.booleans(), keep=st.booleans(), variant=VARIANT)
def test_render_parse_render_is_the_identity(
    small: Tokenizer, talk: Conversation, thinking: bool, keep: bool, variant: Variant
) -> None:
    check_round_trip(small, talk, thinking, keep, variant)


@settings(max_examples=12, deadline=None)
@given(talk=conversations(), thinking=st.booleans(), keep=st.booleans(), variant=VARIANT)
def test_the_official_tokenizer_goes_round_too(
    official: Tokenizer, talk: Conversation, thinking: bool, keep: bool, variant: Variant
) -> None:
    check_round_trip(official, talk, thinking, keep, variant)


@settings(max_examples=25, deadline=None)
@given(talk=conversations(), thinking=st.booleans(), variant=VARIANT)
def test_a_prompt_goes_on_as_its_conversation_does(
    small: Tokenizer, talk: Conversation, thinking: bool, variant: Variant
) -> None:
    """A loop's prompt begins with the prompt before it: what was computed for that is computed once."""
    messages = [one for one in talk.messages if isinstance(one.content, str)]
    last = max(place for place, one in enumerate(messages) if one.role == "assistant")
    if not messages[last].tool_calls:
        return
    options = {"thinking": thinking, "variant": variant}
    before = encode(render(messages[:last], talk.tools, **options, generate=False), small)
    after = encode(render(messages, talk.tools, **options), small)
    assert after[: len(before)] == before


@settings(max_examples=25, deadline=None)
@given(talk=conversations(), seed=st.integers(0, 9))
def test_foreign_call_ids_make_the_same_prompt(small: Tokenizer, talk: Conversation, seed: int) -> None:
    foreign = {
        call.id: f"call_{seed}{place}"
        for place, call in enumerate(call for message in talk.messages for call in message.tool_calls)
    }
    renamed = tuple(
        msgspec.structs.replace(
            message,
            tool_calls=tuple(
                msgspec.structs.replace(call, id=foreign[call.id]) for call in message.tool_calls
            ),
            tool_call_id=message.tool_call_id and foreign[message.tool_call_id],
        )
        for message in talk.messages
    )
    theirs = render(renamed, thinking=True, video_times=talk.times)
    assert theirs == render(talk.messages, thinking=True, video_times=talk.times)


@settings(max_examples=25, deadline=None)
@given(talk=conversations(), said=TEXT, thinking=st.booleans(), data=st.data())
def test_an_answer_gone_on_from_is_the_answer_as_a_whole(
    small: Tokenizer, talk: Conversation, said: str, thinking: bool, data: st.DataObject
) -> None:
    first = next_call_index(talk.messages)
    rest = data.draw(answers(first))
    begun = Message(role="assistant", content=said, reasoning=rest.reasoning, partial=True)
    request = Request(model="m", messages=(*talk.messages, begun), thinking=thinking, keep_thinking=True)
    assert not starts_thinking(request)
    prompt = prompt_ids(request, small, video_times=talk.times)
    alone = encode(render((rest,), thinking=False, generate=False), small)
    going_on = answers_within(alone, small, thinking=False)[0]
    parsed = whole(events_of(going_on, first, small, thinking=False))
    assert parsed == msgspec.structs.replace(rest, reasoning=None)
    joined = msgspec.structs.replace(rest, content=said + rest.content)
    pieces = render(
        (*talk.messages, joined),
        thinking=thinking,
        keep_thinking=True,
        generate=False,
        video_times=talk.times,
    )
    assert prompt + going_on == encode(pieces, small)


@settings(max_examples=25, deadline=None)
@given(talk=conversations(), thinking=st.booleans(), keep=st.booleans())
def test_what_a_client_sends_back_makes_the_same_prompt(
    small: Tokenizer, talk: Conversation, thinking: bool, keep: bool
) -> None:
    """Parsed, streamed as the API does, read by a client, sent back as JSON, decoded: the same tokens."""
    sendable = [one for one in talk.messages if one.role != "assistant" or one.content or one.tool_calls]
    request = Request(
        model="m", messages=tuple(sendable), tools=talk.tools, thinking=thinking, keep_thinking=keep
    )
    once = prompt_ids(request, small, video_times=talk.times)
    turns = iter(answers_within(once, small, thinking))
    again: list[Message] = []
    for message in sendable:
        if message.role == "assistant":
            decoder = ChunkDecoder()
            encoder = ChunkEncoder(id="c", model="m", created=1)
            events = events_of(next(turns), next_call_index(again), small, talk.tools, thinking)
            received_events: list[Event] = []
            for event in events:
                decoder.feed(encoder.encode(event), received_events)
            decoder.close(received_events)
            message = whole(received_events)
        again.append(message)
    sent = encode_request(msgspec.structs.replace(request, messages=tuple(again)))
    received = decode_request(msgspec.json.encode(sent)).request
    assert prompt_ids(received, small, video_times=talk.times) == once


@settings(max_examples=25, deadline=None)
@given(talk=conversations(), thinking=st.booleans(), keep=st.booleans())
def test_media_fill_their_places_and_nothing_else_moves(
    small: Tokenizer, talk: Conversation, thinking: bool, keep: bool
) -> None:
    request = Request(
        model="m", messages=talk.messages, tools=talk.tools, thinking=thinking, keep_thinking=keep
    )
    bare = prompt_ids(request, small, video_times=talk.times)
    full = prompt_with_media(request, small, talk.media)
    pad = small.special(MEDIA_PAD)
    counts = [count for one in talk.media for count in one.tokens]
    assert len(full.starts) == len(counts) == bare.count(pad)
    ids = list(full.ids)
    for start, count in reversed(list(zip(full.starts, counts, strict=True))):
        assert ids[start : start + count] == [pad] * count
        ids[start : start + count] = [pad]
    assert ids == bare


@pytest.fixture(scope="module")
def jinja() -> JinjaTemplate:
    path = TEMPLATES / "k26.jinja"
    return JinjaTemplate(path.read_text(), path)


@settings(max_examples=25, deadline=None)
@given(talk=conversations(), thinking=st.booleans(), keep=st.booleans())
def test_a_template_of_the_format_makes_the_same_prompts(
    small: Tokenizer, jinja: JinjaTemplate, talk: Conversation, thinking: bool, keep: bool
) -> None:
    request = Request(
        model="m", messages=talk.messages, tools=talk.tools, thinking=thinking, keep_thinking=keep
    )
    theirs = jinja.prompt_ids(request, small, video_times=talk.times)
    assert theirs == prompt_ids(request, small, video_times=talk.times)
