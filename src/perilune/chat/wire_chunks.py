"""What the chunks of one answer of an OpenAI-compatible endpoint mean, whatever the endpoint's habits.

Endpoints differ: thinking under `reasoning`, whole tool calls in one chunk, missing ids or indices, usage in
the choice, at the top or in a chunk of its own. What they mean is the same, and only that leaves this file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from perilune.chat.messages import (
    Event,
    Finished,
    FinishReason,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from perilune.chat.wire_errors import HIGH_RISK, clip, reported
from perilune.errors import BackendFiltered, BackendInterrupted, BackendProtocol

NOT_OPENAI = "check that the URL is that of an OpenAI-compatible endpoint"
FINISH_REASONS: dict[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
"""Any other word of an endpoint (`eos`, `end_turn`, ...) means `stop`."""


class Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Any = None


class Choice(msgspec.Struct, gc=False):
    delta: Delta
    finish_reason: Any = None
    usage: Any = None
    message: None = None
    """What stands in the place of `delta` in answers that are no stream."""


class Chunk(msgspec.Struct, gc=False):
    """A chunk as nearly all are, read in a fraction of the time that reading any JSON takes. Whatever is not
    of these types is for `read_chunk`. What was read holds no circle for the collector to look for."""

    choices: list[Choice]
    usage: Any = None
    error: None = None


_plain = msgspec.json.Decoder(Chunk)
plain_chunk = _plain.decode
plain_chunks = _plain.decode_lines
"""One chunk, and chunks, one on each line. They raise one of NOT_PLAIN where one is no such chunk. Fields
that are not read are not looked into either: that they are text, or numbers that fit, is not checked."""
NOT_PLAIN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_chunk(data: bytes) -> Chunk:
    """A chunk, or an answer that is no stream, of any habit. Raises BackendProtocol, or the error that it
    reports."""
    chunk = _parse(data)
    if chunk.get("error"):
        raise reported(chunk["error"])
    choices = chunk.get("choices")
    if not choices:
        return Chunk([], chunk.get("usage"))
    choice = _expect(_expect(choices, list, "choices")[0], dict, "choices[0]")
    given = _expect(choice.get("delta") or choice.get("message") or {}, dict, "delta")
    thinking = given.get("reasoning_content") or given.get("reasoning")
    delta = Delta(
        content=_text(given.get("content")),
        reasoning_content=_expect(thinking or "", str, "reasoning_content"),
        tool_calls=given.get("tool_calls"),
    )
    return Chunk([Choice(delta, choice.get("finish_reason"), choice.get("usage"))], chunk.get("usage"))


class Answer:
    """What the chunks of one answer have said so far."""

    def __init__(self, first_call: int) -> None:
        self.reason: FinishReason | None = None
        self.usage: Usage | None = None
        self._calls: list[_Call] = []
        self._first_call = first_call

    def add(self, chunks: Iterable[Chunk], events: list[Event]) -> None:
        """What they say goes to the end of `events`: all of a chunk, and nothing of one that is refused."""
        for chunk in chunks:
            if chunk.usage:
                self._note_usage(chunk.usage)
            if not chunk.choices:
                continue
            choice = chunk.choices[0]
            if choice.usage:
                self._note_usage(choice.usage)
            delta = choice.delta
            calls = self._fragments(delta.tool_calls) if delta.tool_calls else ()
            if choice.finish_reason:
                self._note_reason(str(choice.finish_reason))
            if thinking := delta.reasoning_content or delta.reasoning:
                events.append(ThinkingDelta(thinking))
            if delta.content:
                events.append(TextDelta(delta.content))
            events += calls

    def finished(self) -> Finished:
        if self.reason is None:
            raise BackendInterrupted("the model's stream ended before it was complete", mend="try again")
        return Finished(self.reason, self.usage or Usage())

    def _fragments(self, fragments: Any) -> list[Event]:
        events: list[Event] = []
        for fragment in _expect(fragments, list, "tool_calls"):
            events += self._fragment(_expect(fragment, dict, "tool_calls[]"))
        return events

    def _fragment(self, fragment: dict[str, Any]) -> list[Event]:
        function = _expect(fragment.get("function") or {}, dict, "tool_calls[].function")
        call = self._call_of(fragment, function)
        call.id = call.id or str(fragment.get("id") or "")
        call.name = call.name or str(function.get("name") or "")
        call.pending += _arguments(function.get("arguments"))
        return self._flush(call) if call.name else []

    def _call_of(self, fragment: dict[str, Any], function: dict[str, Any]) -> _Call:
        """The call that a fragment belongs to: by index, else a new one when it brings an id or a name."""
        key = fragment.get("index")
        if key is None:
            call_id = fragment.get("id")
            is_new = not self._calls or (
                call_id != self._calls[-1].id if call_id else bool(function.get("name"))
            )
            known = [] if is_new else self._calls[-1:]
        else:
            known = [call for call in self._calls if call.key == key]
        if known:
            return known[0]
        call = _Call(key, len(self._calls))
        self._calls.append(call)
        return call

    def _flush(self, call: _Call) -> list[Event]:
        events: list[Event] = []
        if not call.started:
            call.started = True
            call.id = call.id or f"functions.{call.name}:{self._first_call + call.index}"
            events.append(ToolCallStarted(call.index, call.id, call.name))
        if call.pending:
            events.append(ToolCallDelta(call.index, call.pending))
            call.pending = ""
        return events

    def _note_usage(self, usage: Any) -> None:
        self.usage = _usage(_expect(usage, dict, "usage"))

    def _note_reason(self, reason: str) -> None:
        if reason == "content_filter":
            raise BackendFiltered(f"{HIGH_RISK}: the endpoint's content filter stopped the answer")
        if any(not call.started for call in self._calls):
            raise BackendProtocol("the endpoint sent a tool call without a name")
        meant = FINISH_REASONS.get(reason, "stop")
        self.reason = "tool_calls" if meant == "stop" and self._calls else meant


class _Call:
    """A tool call in the making. Until its name is known, its arguments wait."""

    def __init__(self, key: object, index: int) -> None:
        self.key = key
        self.index = index
        self.id = ""
        self.name = ""
        self.pending = ""
        self.started = False


# ---- values


def _parse(data: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BackendProtocol(
            f"the endpoint sent something that is not JSON: {clip(data)}", mend=NOT_OPENAI
        ) from error
    return _expect(value, dict, "the answer")  # type: ignore[no-any-return]


def _expect(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise BackendProtocol(f"the endpoint's answer is not OpenAI-shaped: {where} is {value!r:.80}")
    return value


def _text(content: Any) -> str:
    """Content as text; some endpoints send a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(_expect(content or "", str, "content"))


def _arguments(arguments: Any) -> str:
    """Arguments as JSON text; some endpoints send the object itself."""
    if isinstance(arguments, dict):
        return msgspec.json.encode(arguments).decode()
    return str(_expect(arguments or "", str, "arguments"))


def _usage(usage: dict[str, Any]) -> Usage:
    """Counts from any of the places where endpoints put them; a part never exceeds its whole."""
    prompt_details = usage.get("prompt_tokens_details")
    completion_details = usage.get("completion_tokens_details")
    cached = (
        usage.get("cached_tokens")
        or (isinstance(prompt_details, dict) and prompt_details.get("cached_tokens"))
        or usage.get("prompt_cache_hit_tokens")
    )
    reasoning = isinstance(completion_details, dict) and completion_details.get("reasoning_tokens")
    told = (usage.get("prompt_tokens"), cached, usage.get("completion_tokens"), reasoning)
    counts = [max(0, value) if isinstance(value, int) else 0 for value in told]
    prompt, cached, completion, reasoning = counts
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=min(cached, prompt),
        completion_tokens=completion,
        reasoning_tokens=min(reasoning, completion),
    )
