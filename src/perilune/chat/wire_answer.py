"""From completions, events and errors to the bytes that OpenAI clients read.

A stream: role, then `reasoning_content`, `content` and `tool_calls` deltas, then the closing chunk with
`finish_reason` and `choices[0].usage` (where Kimi's clients look), then, on request, a chunk with no choices
and a top-level `usage` (where OpenAI's look), then `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from perilune.chat.messages import (
    Completion,
    Event,
    Finished,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from perilune.errors import BackendFiltered, InputError, PeriluneError

DONE = b"data: [DONE]\n\n"

_json = msgspec.json.encode


def encode_usage(usage: Usage) -> dict[str, Any]:
    """Cached tokens stand in both places that clients read."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def encode_completion(completion: Completion, *, id: str, model: str, created: int) -> bytes:
    """The body of a call without streaming. `model` is the name that the client asked for."""
    answer = completion.message
    message: dict[str, Any] = {"role": "assistant", "content": answer.content or ""}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = [_call(call) for call in answer.tool_calls]
    choice = {"index": 0, "message": message, "finish_reason": completion.finish_reason}
    return _json(
        {
            "id": id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [choice],
            "usage": encode_usage(completion.usage),
        }
    )


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


class ChunkEncoder:
    """Events of one answer to server-sent events. `encode(Finished)` ends the stream, `[DONE]` included."""

    def __init__(self, *, id: str, model: str, created: int, include_usage: bool = False) -> None:
        fixed = _json({"id": id, "object": "chat.completion.chunk", "created": created, "model": model})
        # A stream repeats all but the delta: both ends of every chunk are made once.
        self._head = b"data: " + fixed[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._text = self._head + b'{"index":0,"delta":{"content":'
        self._after_text = b'},"finish_reason":null}' + self._tail
        self._include_usage = include_usage
        self._started = False

    def encode_all(self, events: Sequence[Event]) -> bytes:
        """What came together."""
        if len(events) == 1:
            return self.encode(events[0])
        return b"".join([self.encode(event) for event in events])

    def encode(self, event: Event) -> bytes:
        if self._started and isinstance(event, TextDelta):  # what a stream mostly is
            return b"%b%b%b" % (self._text, _json(event.text), self._after_text)
        opening = b"" if self._started else self._delta({"role": "assistant", "content": ""})
        self._started = True
        return opening + self._event(event)

    def _event(self, event: Event) -> bytes:
        match event:
            case ThinkingDelta(text=text):
                return self._delta({"reasoning_content": text})
            case TextDelta(text=text):
                return self._delta({"content": text})
            case ToolCallStarted(index=index, id=call_id, name=name):
                function = {"name": name, "arguments": ""}
                return self._delta(
                    {
                        "tool_calls": [
                            {"index": index, "id": call_id, "type": "function", "function": function}
                        ]
                    }
                )
            case ToolCallDelta(index=index, arguments=arguments):
                return self._delta({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})
            case Finished():
                return self._finish(event)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return b"%b%b%b" % (
            self._head,
            _json({"index": 0, "delta": delta, "finish_reason": None}),
            self._tail,
        )

    def _finish(self, event: Finished) -> bytes:
        usage = encode_usage(event.usage)
        choice = {"index": 0, "delta": {}, "finish_reason": event.reason, "usage": usage}
        parts = [self._head, _json(choice), self._tail]
        if self._include_usage:
            parts += [self._head, b'],"usage":', _json(usage), b"}\n\n"]
        return b"".join((*parts, DONE))


WIRE_TYPES = {400: InputError.code, 500: "server_error", 503: "server_unavailable"}
"""The hosted API's one type for all errors of a status; the message says what it is."""


def encode_error(error: PeriluneError) -> bytes:
    filtered = isinstance(error, BackendFiltered)
    kind = error.code if filtered else WIRE_TYPES.get(error.http_status, error.code)
    return _json({"error": {"message": str(error), "type": kind}})


def encode_error_event(error: PeriluneError) -> bytes:
    """For a stream that has begun: the client gets the error and no `[DONE]`."""
    return b"data: " + encode_error(error) + b"\n\n"
