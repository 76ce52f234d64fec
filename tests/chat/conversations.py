"""Random conversations, their media and their tools, for what must hold whatever is said."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st
from tests.chat.media_files import noise, png, url_of, video

from perilune.chat.media import Planned, plan
from perilune.chat.media_rules import MediaRules
from perilune.chat.messages import ImagePart, Message, Part, TextPart, Tool, ToolCall, VideoPart
from perilune.chat.parsing_spelling import MISSPELT_SECTION
from perilune.chat.template import call_id, next_call_index
from perilune.chat.tokenizer import END_THINK, IM_END, SECTION_BEGIN, THINK

SPELT = st.sampled_from(
    (THINK, END_THINK, SECTION_BEGIN, IM_END, "<|tool_call_", "<|media_pad|>", "[EOS]", "🌙", "\n\n", " <")
)
PLAIN = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)
TEXT = st.lists(SPELT | PLAIN, max_size=4).map("".join)
SAID = TEXT.filter(bool)
NAME = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_\-]{0,12}", fullmatch=True)
CALLED = NAME | st.sampled_from(
    ("a.b", "ns:tool", "f:0", "f2", "3", "call3", "搜索", "functions", "functions.f")
)
"""Names in calls; unlike those of declared tools, nobody checks them."""
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


# ---- tools


def _described(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A schema of these keywords, with a description and a default or without."""
    return st.fixed_dictionaries(fields, optional={"description": TEXT, "default": JSON})


def fields_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return _described(
        type=st.just("object"),
        properties=st.dictionaries(TEXT, inner, max_size=3),
        required=st.lists(TEXT, max_size=1),
        additionalProperties=st.booleans() | inner,
    )


SCHEMA = st.recursive(
    st.just({})
    | _described(type=st.sampled_from(("string", "integer", "boolean", "null")))
    | _described(type=st.just("number"), minimum=st.integers(-9, 9), maximum=st.floats(0, 9))
    | _described(type=st.just("string"), pattern=TEXT, maxLength=st.integers(0, 9))
    | _described(enum=st.lists(st.none() | st.booleans() | st.integers(0, 9) | TEXT, min_size=1, max_size=3))
    | _described(type=st.just(["string", "null", "array"])),
    lambda inner: (
        _described(type=st.just("array"), items=inner, minItems=st.integers(0, 3))
        | _described(anyOf=st.lists(inner, min_size=1, max_size=3))
        | _described(oneOf=st.lists(inner, min_size=1, max_size=2))
        | fields_of(inner)
    ),
    max_leaves=5,
)


TOOLS = st.lists(
    st.builds(Tool, name=NAME, description=TEXT, parameters=fields_of(SCHEMA)),
    max_size=2,
    unique_by=lambda tool: tool.name,
).map(tuple)


# ---- messages


@functools.cache
def picture(edge: int) -> ImagePart:
    return ImagePart(url_of(png(noise(edge, 30))))


@functools.cache
def clip(frames: int) -> VideoPart:
    return VideoPart(url_of(video(frames), "video/mp4"))


PART = SAID.map(TextPart) | st.sampled_from((20, 60)).map(picture) | st.sampled_from((3, 25)).map(clip)
CONTENT: st.SearchStrategy[str | tuple[Part, ...]] = SAID | st.lists(PART, min_size=1, max_size=3).map(tuple)
ARGUMENTS = (
    st.dictionaries(TEXT, JSON, max_size=3).map(lambda given: json.dumps(given, ensure_ascii=False))
    | st.sampled_from(("{}", '{"é":"\\ud83c\\udf19"}', "{broken", "[]"))
    | TEXT.filter(str.strip)
)
"""Empty arguments are `{}` once they are parsed."""


@functools.cache
def planned(part: ImagePart | VideoPart) -> Planned:
    return plan([Message(role="user", content=(part,))], MediaRules())[0]


def media_of(messages: Sequence[Message]) -> tuple[Planned, ...]:
    parts = (part for one in messages if isinstance(one.content, tuple) for part in one.content)
    return tuple(planned(part) for part in parts if not isinstance(part, TextPart))


class Conversation(NamedTuple):
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    media: tuple[Planned, ...]

    @property
    def times(self) -> list[Sequence[str]]:
        return [one.times for one in self.media if one.times]


@st.composite
def answers(draw: st.DrawFn, first: int, names: st.SearchStrategy[str] = CALLED) -> Message:
    """What a model may say, in the form in which it is kept: reasoning does not end in blanks, blank text
    before calls is gone."""
    called = draw(st.lists(names, max_size=3))
    calls = tuple(
        ToolCall(call_id(name, first + place), name, draw(ARGUMENTS)) for place, name in enumerate(called)
    )
    content = draw(TEXT.filter(lambda text: not text.rstrip().endswith(MISSPELT_SECTION)))
    if calls and not content.strip():
        content = ""
    reasoning = draw(TEXT).rstrip() or None
    return Message(role="assistant", content=content, reasoning=reasoning, tool_calls=calls)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    messages: list[Message] = []
    tools = draw(TOOLS)
    names = CALLED | st.sampled_from([tool.name for tool in tools]) if tools else CALLED
    if draw(st.booleans()):
        messages.append(Message(role="system", content=draw(CONTENT)))
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.none() | NAME)
        messages.append(Message(role="user", content=draw(CONTENT), name=name))
        for _ in range(draw(st.integers(1, 2))):
            answer = draw(answers(next_call_index(messages), names))
            messages.append(answer)
            for call in draw(st.permutations(answer.tool_calls)):
                name = draw(st.none() | NAME)
                content = draw(CONTENT | st.just(""))
                messages.append(Message(role="tool", content=content, tool_call_id=call.id, name=name))
    return Conversation(tuple(messages), tools, media_of(messages))
