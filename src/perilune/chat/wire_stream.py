"""From the bytes of an OpenAI-compatible endpoint to events and completions.

What the chunks mean is told in `wire_chunks`, what errors mean in `wire_errors`. Anything that is not of the
shape is BackendProtocol; nothing is guessed about a broken answer.
"""

from __future__ import annotations

import re

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
from perilune.chat.wire_chunks import (
    NOT_OPENAI,
    NOT_PLAIN,
    Answer,
    Chunk,
    plain_chunk,
    plain_chunks,
    read_chunk,
)
from perilune.errors import BackendInterrupted, BackendProtocol

MAX_EVENT_BYTES = 32 * 1024 * 1024
"""A longer server-sent event is not an answer but an attack or a defect."""
DONE_EVENT = b"data: [DONE]\n\n"
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

    Feed what arrives, then `close()`: it gives `Finished` to an endpoint that omits `[DONE]`. Both put the
    events at the end of a list, so those before a failure are there when it is raised."""

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

    def feed(self, data: bytes, events: list[Event]) -> None:
        """Raises BackendProtocol, or what the endpoint reports as an error in the stream: after the events
        before it, however much arrived at once."""
        before_done = data.removesuffix(DONE_EVENT)
        is_within = self._data or self._lines.rest
        chunks = None if is_within else _plain_chunks(before_done)
        if chunks is None:
            for line in self._lines.feed(data):
                self._line(line, events)
        elif not self._done:
            self._answer.add(chunks, events)
            if len(before_done) < len(data):
                self._finish(events)

    def close(self, events: list[Event]) -> None:
        """The end of the bytes. Raises BackendInterrupted when the answer was not complete."""
        try:
            for line in (*self._lines.close(), b""):
                self._line(line, events)
        except BackendProtocol as error:  # half an event: the connection was cut inside it
            raise BackendInterrupted("the model's stream was cut") from error
        if not self._done:
            self._finish(events)

    def _line(self, line: bytes, events: list[Event]) -> None:
        if self._done:
            return
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
                self._size += len(line) + 1
            if self._size > MAX_EVENT_BYTES:
                raise BackendProtocol("the endpoint sent an endless event")
            return
        self._size = 0
        data, self._data = b"\n".join(self._data).strip(), []
        if data == b"[DONE]":
            self._finish(events)
        elif data:
            self._answer.add([read_chunk(data)], events)

    def _finish(self, events: list[Event]) -> None:
        self._done = True
        events.append(self._answer.finished())


class _Lines:
    """Bytes to lines, whatever ends them. A carriage return at the end may be half of a line's end."""

    def __init__(self) -> None:
        self.rest = bytearray()
        """What has come of a line that has not ended."""

    def feed(self, data: bytes) -> list[bytes]:
        self.rest += data
        if len(self.rest) > MAX_EVENT_BYTES:
            raise BackendProtocol("the endpoint sent an endless line")
        if b"\n" not in data and b"\r" not in self.rest:
            return []
        held = self.rest.endswith(b"\r")
        lines = LINE_END.split(bytes(self.rest[:-1] if held else self.rest))
        self.rest = bytearray(lines.pop() + (b"\r" if held else b""))
        return lines

    def close(self) -> list[bytes]:
        lines = LINE_END.split(bytes(self.rest))
        self.rest.clear()
        return lines


def _plain_chunks(data: bytes) -> list[Chunk] | None:
    """The events, where the bytes are nothing but whole events of one line and one plain chunk each, as they
    mostly are; None where they are not."""
    is_framed = data.startswith(b"data: {") and data.endswith(b"}\n\n")
    if not is_framed or b"\r" in data:
        return None
    ends = data.count(b"\n")
    try:
        if ends == 2:  # one event, as a stream that is made while it is sent mostly comes
            return [plain_chunk(data[6:-2])]
        number = data.count(b"}\n\ndata: {") + 1
        if ends != 2 * number:
            return None
        chunks = plain_chunks(data[6:-2].replace(b"\n\ndata: ", b"\n"))
    except NOT_PLAIN:
        return None
    # No object goes on over the end of a line here, `}` being before it and `{` after it: as many objects as
    # lines are one on each.
    return chunks if len(chunks) == number else None


def decode_completion(body: bytes, first_call: int = 0) -> Completion:
    """The answer to a call without streaming. Raises BackendProtocol, or the error that the body reports."""
    answer, assembler = Answer(first_call), Assembler()
    events: list[Event] = []
    answer.add([read_chunk(body)], events)
    if answer.reason is None:
        raise BackendProtocol("the endpoint's answer has no choice with a finish_reason", mend=NOT_OPENAI)
    assembler.add_all([*events, answer.finished()])
    return assembler.completion()
