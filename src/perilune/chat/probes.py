"""Conversations that tell chat templates apart: every rule of the format shows in one of them.

They are rendered by us and by a checkpoint's own template when it is loaded (`chat/oracle.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from perilune.chat.messages import ImagePart, Message, TextPart, Tool, ToolCall, VideoPart


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    thinking: bool = True
    keep_thinking: bool = False
    generate: bool = True
    video_times: tuple[tuple[str, ...], ...] = ()

    @property
    def has_media(self) -> bool:
        parts = (part for one in self.messages if isinstance(one.content, tuple) for part in one.content)
        return any(not isinstance(part, TextPart) for part in parts)

    def __hash__(self) -> int:
        return hash(self.name)


def _system(text: str) -> Message:
    return Message(role="system", content=text)


def _user(text: str, name: str | None = None) -> Message:
    return Message(role="user", content=text, name=name)


def _said(text: str | None, reasoning: str | None = None, *calls: ToolCall) -> Message:
    return Message(role="assistant", content=text, reasoning=reasoning, tool_calls=calls)


def _returned(call: ToolCall, text: str, name: str | None = None) -> Message:
    return Message(role="tool", content=text, tool_call_id=call.id, name=name)


def _tool(name: str, properties: dict[str, Any], **more: Any) -> Tool:
    parameters = {"type": "object", "properties": properties, **more}
    return Tool(name=name, description=f"Does {name}.", parameters=parameters)


_PLAIN = _tool("f", {"x": {"type": "integer", "description": "a number"}}, required=["x"])
_RICH = _tool(
    "rich",
    {
        "unit": {"type": "string", "enum": ["é", "b"], "default": "é", "description": "two\nlines"},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "list": {"type": "array", "items": {"type": "string", "description": "one"}, "maxItems": 3},
        "either": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "inner": {"type": "object", "properties": {"deep": {"type": ["number", "array"]}}},
        "flag": {"type": "boolean", "default": False},
    },
    required=["unit", "either"],
    additionalProperties=False,
)
_REFERRING = _tool(
    "tree", {"node": {"$ref": "#/$defs/Node"}}, **{"$defs": {"Node": {"type": "object", "description": "N"}}}
)
_INEXPRESSIBLE = _tool("odd", {"x": {"oneOf": [{"type": "string"}]}})

_F0 = ToolCall("functions.f:0", "f", '{"x": 1}')
_F1 = ToolCall("functions.f:1", "f", '{"x":2,"é":"<"}')
_LOOP = (_user("u1"), _said("", "R1", _F0), _returned(_F0, "r1"))
_LONG_LOOP = (*_LOOP, _said("look", "R2", _F1), _returned(_F1, "r2", "f"))
_SETTLED = (*_LOOP, _said("a1", "R2"), _user("u2"))
_AFTER = (*_SETTLED, _said("", "R3", _F1), _returned(_F1, "r3"))
_TALK = (_user("2+2?"), _said("4", "Sum."), _user("3+3?"))
_PICTURE = ImagePart("data:image/png;base64,")
_CLIP = VideoPart("data:video/mp4;base64,")


def probes() -> tuple[Probe, ...]:
    return tuple(_probes())


def _probes() -> Iterator[Probe]:
    for name, messages in (
        ("one question", (_user("Hello"),)),
        ("a system message", (_system("Be brief."), _user("Hello"))),
        ("two system messages", (_system("One."), _system("Two."), _user("Hello"))),
        ("a late system message", (_user("Hello"), _said("Hi"), _system("Be brief."), _user("So?"))),
        ("blanks and newlines", (_system("  s\n"), _user("\n u \n\n"), _said(" a ", " r\n"), _user(" "))),
        ("not ASCII, and markup", (_user('é 月 🌙 <b>&amp;</b> "q" {{ x }} {% y %}'),)),
        ("a named speaker", (_user("Hello", "ann"), _said("Hi"), _user("So?", "bob"))),
        ("an answer with reasoning", _TALK),
        ("answers without reasoning", (_user("a"), _said("b"), _user("c"), _said("d"), _user("e"))),
        ("an open tool loop", _LOOP),
        ("a longer loop, with text and a name", _LONG_LOOP),
        ("a settled loop", _SETTLED),
        ("a loop after a settled one", _AFTER),
        ("a user amid a loop", (*_LOOP, _user("u2"))),
        ("two calls at once", (_user("u"), _said(None, None, _F0, _F1), _returned(_F1, "b"))),
        ("text and a picture", (Message(role="user", content=(TextPart("See: "), _PICTURE)),)),
        ("a picture first", (Message(role="user", content=(_PICTURE, TextPart("b"), _PICTURE)),)),
        ("text in parts", (Message(role="user", content=(TextPart("a"), TextPart("b\n"))),)),
    ):
        yield Probe(name=name, messages=messages)
    yield Probe(
        name="videos and a picture",
        messages=(Message(role="user", content=(_CLIP, TextPart("or"), _PICTURE, _CLIP)),),
        video_times=(("00:00:00.000", "00:00:02.000"), ("00:00:00.000",)),
    )
    for name, messages in (("a question", _TALK[:1]), ("reasoning", _TALK), ("a loop", _AFTER)):
        yield Probe(name=f"{name}, instant", messages=messages, thinking=False)
        yield Probe(name=f"{name}, all reasoning kept", messages=messages, keep_thinking=True)
    yield Probe(name="reasoning kept but instant", messages=_TALK, thinking=False, keep_thinking=True)
    yield Probe(name="no answer asked for", messages=_TALK[:2], generate=False)
    for name, tools in (
        ("one tool", (_PLAIN,)),
        ("several tools", (_RICH, _PLAIN)),
        ("a tool with definitions", (_REFERRING,)),
        ("a tool outside TypeScript", (_PLAIN, _INEXPRESSIBLE)),
    ):
        yield Probe(name=name, messages=(_system("Be brief."), _user("Go.")), tools=tools)
    yield Probe(name="tools without a system message", messages=_LOOP, tools=(_PLAIN,))
    yield Probe(name="tools and instant", messages=_AFTER, tools=(_PLAIN,), thinking=False)
