"""The nouns of a conversation, shared by template, wire, backends, agent and swarm.

Every type is immutable data. The OpenAI dialect of these types lives in `chat/wire.py`, nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    text: str


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    url: str
    """A data URL; remote URLs are never fetched by default. Straight from the wire it may be `ms://FILE_ID`,
    which the API replaces by the file's data URL before any backend sees it."""


class VideoPart(msgspec.Struct, frozen=True, tag="video"):
    url: str


Part = TextPart | ImagePart | VideoPart


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    """Canonical form `functions.NAME:IDX`, IDX counting calls over the whole conversation."""
    name: str
    arguments: str
    """The arguments as JSON text, exactly as the model wrote them."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    role: Role
    content: str | tuple[Part, ...] | None = None
    name: str | None = None
    reasoning: str | None = None
    """The assistant's thinking; on the wire `reasoning_content`."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    partial: bool = False
    """The last assistant message is a prefix to go on from (the hosted API's partial mode)."""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    description: str = ""
    parameters: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """A JSON schema of type object. The order of `properties` is the order in which arguments are written."""
    strict: bool = True


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One model call, independent of dialect and backend."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    """`auto`, `none`, `required`, or the name of one tool written as `tool:NAME`."""
    thinking: bool = True
    keep_thinking: bool = False
    """K2.6 `thinking.keep = "all"`: earlier reasoning stays in the prompt."""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: Mapping[str, Any] | None = None
    """Constrain the answer's text to this schema; `{}` means any JSON object."""
    argument_choices: Mapping[str, Mapping[str, tuple[str, ...]]] = msgspec.field(default_factory=dict)
    """tool -> argument -> the only strings it may hold. Our engine's grammar enforces it; other
    endpoints ignore it and the agent answers a violation with a tool error."""
    cache_salt: str = ""
    """Prefix reuse never crosses this boundary (one per organisation)."""
    prompt_cache_key: str | None = None
    """Session affinity hint for routing; never changes output."""
    max_parallel_calls: int | None = None
    """Most tool calls in the answer; None leaves it to the model. Our engine's grammar enforces it."""
    thinking_budget: int | None = None
    """Most tokens of thinking: then our backend closes it and lets the model answer."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of one call. `cached_tokens` is part of `prompt_tokens`, `reasoning_tokens` of
    `completion_tokens`."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


# ---- what a backend streams, in this order: thinking, text, tool calls (one after the other), Finished.
# Many are made, and none can be in a circle: the collector need not know them.


class ThinkingDelta(msgspec.Struct, frozen=True, gc=False, tag="thinking"):
    text: str


class TextDelta(msgspec.Struct, frozen=True, gc=False, tag="text"):
    text: str


class ToolCallStarted(msgspec.Struct, frozen=True, gc=False, tag="call"):
    index: int
    """Position in this answer (OpenAI's `index`), not the IDX of the id."""
    id: str
    name: str


class ToolCallDelta(msgspec.Struct, frozen=True, gc=False, tag="arguments"):
    index: int
    arguments: str


class Finished(msgspec.Struct, frozen=True, gc=False, tag="finished"):
    """Always last, exactly once; a stream that ends without it was interrupted."""

    reason: FinishReason
    usage: Usage


Event = ThinkingDelta | TextDelta | ToolCallStarted | ToolCallDelta | Finished


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer: what all events of one stream add up to."""

    message: Message
    finish_reason: FinishReason
    usage: Usage


class Assembler:
    """Adds events up to a `Completion`."""

    def __init__(self) -> None:
        self._thinking: list[str] = []
        self._text: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []
        self._finished: Finished | None = None

    def add(self, event: Event) -> None:
        match event:
            case TextDelta():
                self._text.append(event.text)
            case ThinkingDelta():
                self._thinking.append(event.text)
            case ToolCallStarted():
                self._calls.append((event.id, event.name, []))
            case ToolCallDelta():
                self._calls[event.index][2].append(event.arguments)
            case Finished():
                self._finished = event

    def add_all(self, burst: Sequence[Event]) -> None:
        text = self._text
        for event in burst:
            if isinstance(event, TextDelta):
                text.append(event.text)
            else:
                self.add(event)

    @property
    def complete(self) -> bool:
        return self._finished is not None

    def completion(self) -> Completion:
        """The whole answer. Call it only after `Finished` was added."""
        assert self._finished is not None, "completion() before Finished"
        message = Message(
            role="assistant",
            content="".join(self._text),
            reasoning="".join(self._thinking) or None,
            tool_calls=tuple(ToolCall(i, n, "".join(parts)) for i, n, parts in self._calls),
        )
        return Completion(message=message, finish_reason=self._finished.reason, usage=self._finished.usage)
