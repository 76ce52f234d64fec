"""From the bytes of an OpenAI-compatible endpoint to events and completions.

What the chunks mean is told in `wire_chunks`, what errors mean in `wire_errors`. Anything that is not of the
shape is BackendProtocol; nothing is guessed about a broken answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from perilune.chat.messages import (
    Assembler,
    Completion,
    Event,
    Finished,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from perilune.chat.wire_chunks import NOT_OPENAI, Answer, plain_chunk, read_chunk
from perilune.errors import BackendInterrupted, BackendProtocol

MAX_EVENT_BYTES = 32 * 1024 * 1024
"""A longer server-sent event is not an answer but an attack or a defect."""
LINE_END = re.compile(rb"\r\n|\n|\r")


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
        self._answer = Answer(first_call)
        self._data: list[bytes] = []
        self._size = 0
        self._done = False

    @property
    def usage_seen(self) -> bool:
        """Whether the endpoint reported token counts at all; if not, those of `Finished` are zeros."""
        return self._answer.usage is not None

    def feed(self, data: bytes) -> Iterator[Event]:
        """Raises, while it is iterated over, BackendProtocol, or what the endpoint reports as an error in the
        stream: after the events before it, however much arrived at once."""
        whole = None if self._data else self._lines.whole_events(data)
        if whole is None:
            for line in self._lines.feed(data):
                yield from self._line(line)
            return
        for data in whole:
            if self._done:
                return
            chunk = plain_chunk(data)
            yield from self._event(data) if chunk is None else self._answer.add(chunk)

    def close(self) -> Iterator[Event]:
        """The end of the bytes. Raises BackendInterrupted when the answer was not complete."""
        try:
            for line in (*self._lines.close(), b""):
                yield from self._line(line)
        except BackendProtocol as error:  # half an event: the connection was cut inside it
            raise BackendInterrupted("the model's stream was cut") from error
        if not self._done:
            yield from self._finish()

    def _line(self, line: bytes) -> Sequence[Event]:
        if self._done:
            return ()
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
                self._size += len(line) + 1
            if self._size > MAX_EVENT_BYTES:
                raise BackendProtocol("the endpoint sent an endless event")
            return ()
        self._size = 0
        data, self._data = b"\n".join(self._data), []
        return self._event(data)

    def _event(self, data: bytes) -> Sequence[Event]:
        data = data.strip()
        if self._done or not data:
            return ()
        return self._finish() if data == b"[DONE]" else self._answer.add(read_chunk(data))

    def _finish(self) -> Sequence[Event]:
        self._done = True
        return (self._answer.finished(),)


class _Lines:
    """Bytes to lines, whatever ends them. A carriage return at the end may be half of a line's end."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def whole_events(self, data: bytes) -> list[bytes] | None:
        """What the events say, where the bytes are nothing but whole events of one line of data each, as they
        mostly are; None where they are not, and `feed` is to read them."""
        if self._rest or b"\r" in data or not (data.startswith(b"data: ") and data.endswith(b"\n\n")):
            return None
        events = data[6:-2].split(b"\n\ndata: ")
        return events if data.count(b"\n") == 2 * len(events) else None

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


def decode_completion(body: bytes, first_call: int = 0) -> Completion:
    """The answer to a call without streaming. Raises BackendProtocol, or the error that the body reports."""
    answer, assembler = Answer(first_call), Assembler()
    for event in answer.add(read_chunk(body)):
        assembler.add(event)
    if answer.reason is None:
        raise BackendProtocol("the endpoint's answer has no choice with a finish_reason", mend=NOT_OPENAI)
    assembler.add(answer.finished())
    return assembler.completion()
