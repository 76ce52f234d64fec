"""A model without a model: its answers are a pure function of the request's content.

Never of the order of calls, the clock or chance, so a run that is killed and resumed gets the same
answers as one that is not. A script is a list of rules; the first that has a reply gives it.

    backend = ScriptedBackend([when("weather", Call("weather", {"city": "Riga"})), lambda r: "Hello."])

The default script is `backends/rename_script.py`: a perfect little model for the rename swarm.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import msgspec

from perilune.backends.base import ModelEntry
from perilune.chat.messages import (
    Completion,
    Event,
    Finished,
    FinishReason,
    Message,
    Request,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from perilune.errors import UnsupportedInput

BYTES_PER_TOKEN = 4
MESSAGE_TOKENS = 4
"""What the markers around one message count for."""
CACHE_BLOCK = 16
"""Cached prefixes are whole blocks, as in the engine."""


class Call(msgspec.Struct, frozen=True):
    """A tool call to make; the backend gives it its id."""

    name: str
    arguments: Mapping[str, Any] = msgspec.field(default_factory=dict)


Reply = str | Call | Sequence[Call] | Completion
"""Text, one or several tool calls, or a whole answer with its own usage."""
Rule = Callable[[Request], Reply | None]
"""The reply to this request, or None to leave it to the next rule. Must look at nothing but the request."""


def when(text: str, reply: Reply) -> Rule:
    """A rule for requests whose last message holds `text`."""
    return lambda request: reply if text in text_of(request.messages[-1]) else None


class ScriptedBackend:
    """Answers from rules. See the module's text."""

    def __init__(
        self,
        script: Rule | Sequence[Rule] | None = None,
        *,
        entry: ModelEntry | None = None,
        latency: float = 0.0,
        chunk: int = 0,
    ) -> None:
        """`latency` seconds pass before the first event. With `chunk`, text and arguments arrive in pieces
        of so many characters, else each in one piece."""
        if script is None:
            from perilune.backends.rename_script import RULES  # it builds on this module's types

            script = RULES
        self._rules: tuple[Rule, ...] = (script,) if callable(script) else tuple(script)
        self._entry = entry or scripted_entry()
        self._latency = latency
        self._chunk = chunk

    async def models(self) -> tuple[ModelEntry, ...]:
        return (self._entry,)

    def answer(self, request: Request) -> Completion:
        """The whole answer: the pure function itself.

        Raises UnsupportedInput when no rule has a reply."""
        for rule in self._rules:
            reply = rule(request)
            if reply is not None:
                return _completion(request, reply)
        raise UnsupportedInput("the script has no reply to this request", field="messages")

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        completion = self.answer(request)
        if self._latency:
            await asyncio.sleep(self._latency)
        for event in events_of(completion, self._chunk):
            yield event

    async def ready(self) -> None:
        return None

    async def count_tokens(self, request: Request) -> int | None:
        return prompt_tokens(request)

    async def close(self) -> None:
        return None


def scripted_entry(model: str = "scripted", goals: str = "rename") -> ModelEntry:
    """The entry of a scripted model that plays the bundled model's part in a rename swarm."""
    return ModelEntry(
        id=model,
        backend="scripted",
        context_length=8192,
        max_output_tokens=1024,
        goals=goals,
        orchestrator_profile="orchestrate-rename",
        subagent_profile="rename",
    )


def events_of(completion: Completion, chunk: int = 0) -> list[Event]:
    """The events that add up to this answer."""
    message = completion.message
    events: list[Event] = [ThinkingDelta(piece) for piece in _pieces(message.reasoning or "", chunk)]
    events += [TextDelta(piece) for piece in _pieces(text_of(message), chunk)]
    for index, call in enumerate(message.tool_calls):
        events.append(ToolCallStarted(index, call.id, call.name))
        events += [ToolCallDelta(index, piece) for piece in _pieces(call.arguments, chunk)]
    events.append(Finished(completion.finish_reason, completion.usage))
    return events


def text_of(message: Message) -> str:
    """The message's text; "" for content that is not plain text."""
    return message.content if isinstance(message.content, str) else ""


# ---- deterministic usage


def prompt_tokens(request: Request) -> int:
    return _tools_tokens(request) + sum(_message_tokens(message) for message in request.messages)


def usage_of(request: Request, answer: Message) -> Usage:
    """Counts as a function of content: a prompt has in the cache all that an earlier call of the same
    conversation sent; a first call, the tools and system message that its siblings share."""
    messages = request.messages
    said = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if said:
        shared = messages[: said[-1]]
    else:
        shared = tuple(message for message in messages[:1] if message.role == "system")
    cached = _tools_tokens(request) + sum(_message_tokens(message) for message in shared)
    return Usage(
        prompt_tokens=prompt_tokens(request),
        cached_tokens=cached - cached % CACHE_BLOCK,
        completion_tokens=_message_tokens(answer),
        reasoning_tokens=_tokens(answer.reasoning or ""),
    )


def _tools_tokens(request: Request) -> int:
    return _tokens(msgspec.json.encode(request.tools).decode()) if request.tools else 0


def _message_tokens(message: Message) -> int:
    texts = [text_of(message), message.reasoning or ""]
    texts += [call.name + call.arguments for call in message.tool_calls]
    return MESSAGE_TOKENS + sum(_tokens(text) for text in texts)


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


# ---- from a reply to an answer


def _completion(request: Request, reply: Reply) -> Completion:
    if isinstance(reply, Completion):
        return reply
    reason: FinishReason = "stop" if isinstance(reply, str) else "tool_calls"
    if isinstance(reply, str):
        message = Message(role="assistant", content=reply)
    else:
        calls = (reply,) if isinstance(reply, Call) else reply
        message = Message(role="assistant", content="", tool_calls=_numbered(request, calls))
    return Completion(message=message, finish_reason=reason, usage=usage_of(request, message))


def _numbered(request: Request, calls: Sequence[Call]) -> tuple[ToolCall, ...]:
    """The calls with ids that count on from the conversation."""
    first = sum(len(message.tool_calls) for message in request.messages)
    return tuple(
        ToolCall(
            f"functions.{call.name}:{number}",
            call.name,
            json.dumps(call.arguments, ensure_ascii=False),
        )
        for number, call in enumerate(calls, start=first)
    )


def _pieces(text: str, chunk: int) -> list[str]:
    if not text:
        return []
    return [text[at : at + chunk] for at in range(0, len(text), chunk)] if chunk else [text]
