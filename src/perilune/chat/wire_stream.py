"""From the bytes of an OpenAI-compatible endpoint to events, completions and errors.

Endpoints differ: thinking under `reasoning`, whole tool calls in one chunk, missing ids or indices, usage in
the choice, at the top or in a chunk of its own. What they mean is the same, and only that leaves this file.
Anything that is not of this shape is BackendProtocol; nothing is guessed about a broken answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from perilune.chat.messages import (
    Assembler,
    Completion,
    Event,
    Finished,
    FinishReason,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from perilune.errors import (
    BackendAuth,
    BackendError,
    BackendFiltered,
    BackendInterrupted,
    BackendOutOfQuota,
    BackendProtocol,
    BackendRateLimited,
    BackendRefused,
    BackendUnreachable,
)

MAX_EVENT_BYTES = 32 * 1024 * 1024
"""A longer server-sent event is not an answer but an attack or a defect."""
DETAIL_CHARS = 300
OVERLOADED = "The engine is currently overloaded, please try again later"
HIGH_RISK = "The request was rejected because it was considered high risk"
NOT_OPENAI = "check that the URL is that of an OpenAI-compatible endpoint"
LINE_END = re.compile(rb"\r\n|\n|\r")
FINISH_REASONS: dict[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
"""Any other word of an endpoint (`eos`, `end_turn`, ...) means `stop`."""


def completion_events(completion: Completion) -> list[Event]:
    """A whole answer as the events it would have been streamed as."""
    message = completion.message
    events: list[Event] = []
    if message.reasoning:
        events.append(ThinkingDelta(message.reasoning))
    if isinstance(message.content, str) and message.content:
        events.append(TextDelta(message.content))
    for index, call in enumerate(message.tool_calls):
        events += [ToolCallStarted(index, call.id, call.name), ToolCallDelta(index, call.arguments)]
    return [*events, Finished(completion.finish_reason, completion.usage)]


class ChunkDecoder:
    """Server-sent events to events; the same ones however the bytes are split.

    Feed what arrives, then `close()`: it gives `Finished` to an endpoint that omits `[DONE]`."""

    def __init__(self, first_call: int = 0) -> None:
        """`first_call`: tool calls that the conversation holds already; it numbers calls without an id."""
        self._lines = _Lines()
        self._answer = _Answer(first_call)
        self._data: list[bytes] = []
        self._size = 0
        self._done = False

    @property
    def usage_seen(self) -> bool:
        """Whether the endpoint reported token counts at all; if not, those of `Finished` are zeros."""
        return self._answer.usage is not None

    def feed(self, data: bytes) -> Iterator[Event]:
        """Raises BackendProtocol, or what the endpoint reports as an error in the stream: after the events
        before it, however much arrived at once."""
        for line in self._lines.feed(data):
            yield from self._line(line)

    def close(self) -> Iterator[Event]:
        """The end of the bytes. Raises BackendInterrupted when the answer was not complete."""
        try:
            for line in (*self._lines.close(), b""):
                yield from self._line(line)
        except BackendProtocol as error:  # half an event: the connection was cut inside it
            raise BackendInterrupted("the model's stream was cut") from error
        if not self._done:
            yield from self._finish()

    def _line(self, line: bytes) -> list[Event]:
        if self._done:
            return []
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
                self._size += len(line) + 1
            if self._size > MAX_EVENT_BYTES:
                raise BackendProtocol("the endpoint sent an endless event")
            return []
        self._size = 0
        data, self._data = b"\n".join(self._data).strip(), []
        if not data:
            return []
        if data == b"[DONE]":
            return self._finish()
        return self._answer.add(_parse(data))

    def _finish(self) -> list[Event]:
        self._done = True
        return [self._answer.finished()]


class _Lines:
    """Bytes to lines, whatever ends them. A carriage return at the end may be half of a line's end."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._rest += data
        if len(self._rest) > MAX_EVENT_BYTES:
            raise BackendProtocol("the endpoint sent an endless line")
        if b"\n" not in data and b"\r" not in self._rest:
            return []
        held = self._rest.endswith(b"\r")
        lines = LINE_END.split(bytes(self._rest[:-1] if held else self._rest))
        self._rest = bytearray(lines.pop() + (b"\r" if held else b""))
        return lines

    def close(self) -> list[bytes]:
        lines = LINE_END.split(bytes(self._rest))
        self._rest.clear()
        return lines


class _Answer:
    """What the chunks of one answer have said so far."""

    def __init__(self, first_call: int) -> None:
        self.reason: FinishReason | None = None
        self.usage: Usage | None = None
        self._calls: list[_Call] = []
        self._first_call = first_call

    def add(self, chunk: dict[str, Any]) -> list[Event]:
        if chunk.get("error"):
            raise _reported(chunk["error"])
        self._note_usage(chunk.get("usage"))
        choices = chunk.get("choices")
        if not choices:
            return []
        choice = _expect(choices, list, "choices")[0]
        self._note_usage(_expect(choice, dict, "choices[0]").get("usage"))
        events = self._delta(choice.get("delta") or choice.get("message") or {})
        if choice.get("finish_reason"):
            self._note_reason(str(choice["finish_reason"]))
        return events

    def finished(self) -> Finished:
        if self.reason is None:
            raise BackendInterrupted("the model's stream ended before it was complete", mend="try again")
        return Finished(self.reason, self.usage or Usage())

    def _delta(self, delta: Any) -> list[Event]:
        _expect(delta, dict, "delta")
        events: list[Event] = []
        thinking = delta.get("reasoning_content") or delta.get("reasoning")
        if thinking:
            events.append(ThinkingDelta(_expect(thinking, str, "reasoning_content")))
        text = _text(delta.get("content"))
        if text:
            events.append(TextDelta(text))
        for fragment in _expect(delta.get("tool_calls") or [], list, "tool_calls"):
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
        if usage:
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


def decode_completion(body: bytes, first_call: int = 0) -> Completion:
    """The answer to a call without streaming. Raises BackendProtocol, or the error that the body reports."""
    answer, assembler = _Answer(first_call), Assembler()
    for event in answer.add(_parse(body)):
        assembler.add(event)
    if answer.reason is None:
        raise BackendProtocol("the endpoint's answer has no choice with a finish_reason", mend=NOT_OPENAI)
    assembler.add(answer.finished())
    return assembler.completion()


def is_out_of_quota(body: bytes) -> bool:
    """A 429 that no waiting mends."""
    return b"quota_error" in body or b"insufficient_quota" in body


def decode_error(status: int, body: bytes, retry_after_s: float | None = None) -> BackendError:
    """What an HTTP status of 400 or more means, with the endpoint's own words."""
    detail = _detail(body)
    if status in (401, 403):
        return BackendAuth(
            f"the model endpoint refused the key: {detail}", field="model_key", mend="correct it"
        )
    if status == 429:
        if is_out_of_quota(body):
            return BackendOutOfQuota(
                f"the model endpoint's account is used up: {detail}", mend="top up the endpoint's account"
            )
        return BackendRateLimited(
            f"{OVERLOADED}: the model endpoint is at its limit: {detail}",
            retry_after_s=retry_after_s,
            mend="try later",
        )
    if status == 400 and b"content_filter" in body:
        return BackendFiltered(f"{HIGH_RISK}: {detail}", mend="change what is asked")
    if 400 <= status < 500 and status != 408:
        return BackendRefused(f"the model endpoint refused the request ({status}): {detail}")
    if status in (408, 502, 503, 504):
        return BackendUnreachable(
            f"the model endpoint is not available ({status}): {detail}", mend="try later"
        )
    return BackendError(
        f"the model endpoint failed ({status}): {detail}", mend="try again, or look into the endpoint's log"
    )


# ---- values


def _parse(data: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BackendProtocol(
            f"the endpoint sent something that is not JSON: {_clip(data)}", mend=NOT_OPENAI
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
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    prompt_details = usage.get("prompt_tokens_details")
    completion_details = usage.get("completion_tokens_details")
    cached = (
        usage.get("cached_tokens")
        or (isinstance(prompt_details, dict) and prompt_details.get("cached_tokens"))
        or usage.get("prompt_cache_hit_tokens")
    )
    reasoning = isinstance(completion_details, dict) and completion_details.get("reasoning_tokens")
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=min(_count(cached), prompt),
        completion_tokens=completion,
        reasoning_tokens=min(_count(reasoning), completion),
    )


def _count(value: Any) -> int:
    return max(0, value) if isinstance(value, int) else 0


# ---- errors


def _reported(error: Any) -> BackendError:
    """An error object inside a 200 answer. It carries its own status only in some endpoints' `code`."""
    message = error.get("message") if isinstance(error, dict) else error
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 600:
        return decode_error(code, msgspec.json.encode({"error": {"message": str(message)}}))
    return BackendError(f"the model endpoint failed: {str(message)[:DETAIL_CHARS]}")


def _detail(body: bytes) -> str:
    """The message of an error body, whatever its shape."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _clip(body)
    error = value.get("error", value) if isinstance(value, dict) else value
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return str(message)[:DETAIL_CHARS] if message else _clip(body)


def _clip(data: bytes) -> str:
    text = data[:DETAIL_CHARS].decode(errors="replace")
    return " ".join(text.split()) or "no explanation"
