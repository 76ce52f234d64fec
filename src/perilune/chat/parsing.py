"""A model's token ids, as they arrive, to thinking, text and tool calls.

Markers are recognised by their ids, never by their spelling: text that merely spells one stays text. Only
`feed_text`, for answers of which nothing but the text is left, goes by the spelling. No model output makes
the parser raise. What a model does wrong in practice is met here: `</think>` left out before a call, calls
outside a section, a call that is never closed, foreign call ids.

    REASONING --</think>--> CONTENT --section or call begin--> BETWEEN <--> HEADER --> ARGUMENTS
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, auto
from typing import Protocol

from perilune.chat.messages import (
    Event,
    TextDelta,
    ThinkingDelta,
    Tool,
    ToolCallDelta,
    ToolCallStarted,
)
from perilune.chat.parsing_calls import call_name, is_json, tool_by_arguments
from perilune.chat.parsing_spelling import MISSPELT_END, MISSPELT_SECTION, split_markers
from perilune.chat.template import call_id
from perilune.chat.tokenizer import (
    CALL_ARGUMENTS,
    CALL_BEGIN,
    CALL_END,
    END_THINK,
    SECTION_BEGIN,
    SECTION_END,
    STOPS,
    THINK,
)


class _State(Enum):
    REASONING = auto()
    CONTENT = auto()
    BETWEEN = auto()
    """In or behind a tool section, outside a call: text here is suppressed."""
    HEADER = auto()
    ARGUMENTS = auto()
    DONE = auto()


class Tokens(Protocol):
    """What a parser must know of a tokenizer."""

    @property
    def specials(self) -> Mapping[str, int]: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    def token_bytes(self) -> tuple[bytes, ...]: ...


class StreamParser:
    """One answer. Feed it ids in any portions: the events add up to the same."""

    def __init__(
        self, tokenizer: Tokens, *, thinking: bool, first_call: int, tools: Sequence[Tool] = ()
    ) -> None:
        """`thinking`: the prompt ended inside an open think block. `first_call`: IDX of the answer's first
        call. `tools`: what was declared, to make out a call whose id does not name its tool."""
        self._tokens = tokenizer.token_bytes()
        self._stops = frozenset(tokenizer.stop_ids)
        self._specials: Mapping[int, str] = {number: name for name, number in tokenizer.specials.items()}
        self._names = tuple(tokenizer.specials)
        self._state = _State.REASONING if thinking else _State.CONTENT
        self._first_call = first_call
        self._tools = tools
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._events: list[Event] = []
        self._held = ""
        self._spelt = ""
        self._has_text = False
        self._header = ""
        self._suppressed = ""
        self._calls = 0
        self._unnamed = False
        self._has_arguments = False
        self._arguments: list[str] = []
        """Those of the last call, as they came."""
        self.reasoning_tokens = 0
        """Tokens of the thinking so far, without its closing marker."""
        self.truncated = False
        """The answer ended within the arguments of a call, and they are no whole JSON."""

    @property
    def called(self) -> bool:
        """Whether the answer holds a tool call."""
        return self._calls > 0

    @property
    def thinking(self) -> bool:
        """Whether the thinking is still open."""
        return self._state is _State.REASONING

    def feed(self, ids: Iterable[int]) -> list[Event]:
        """Events of the next ids. Ids behind the end of the answer are ignored."""
        for token in ids:
            if self._state is _State.DONE:
                break
            if token in self._stops:
                self._end()
            elif (name := self._specials.get(token)) is not None:
                self._mark(name)
            elif 0 <= token < len(self._tokens):
                self.reasoning_tokens += self._state is _State.REASONING
                self._write(self._decoder.decode(self._tokens[token]))
        return self._drain()

    def feed_text(self, text: str) -> list[Event]:
        """Events of the next text of an answer whose tokens are not known; markers go by their spelling, and
        one that is still incomplete is held back. Of one answer feed ids or text, never both."""
        *parts, self._spelt = split_markers(self._spelt + text, self._names)
        for part in parts:
            self._take(part)
        return self._drain()

    def _take(self, part: str) -> None:
        if self._state is _State.DONE:
            return
        if part in STOPS:
            self._end()
        elif part in (MISSPELT_SECTION, MISSPELT_END):
            self._mark(SECTION_BEGIN if part == MISSPELT_SECTION else SECTION_END)
        elif part in self._names:
            self._mark(part)
        else:
            self._write(part)

    def close(self) -> list[Event]:
        """The last events; what was held back or left open is finished."""
        if self._spelt:
            self._take(self._spelt)
            self._spelt = ""
        self._end()
        return self._drain()

    # ---- markers

    def _mark(self, name: str) -> None:
        state = self._state
        if name in (THINK, END_THINK):
            if state is _State.ARGUMENTS:
                self._write(self._decoder.decode(name.encode()))
            elif name == END_THINK and state is _State.REASONING:
                self._leave(_State.CONTENT)
        elif name == SECTION_BEGIN:
            self._leave(_State.BETWEEN)
        elif name == CALL_BEGIN:
            self._leave(_State.HEADER)
        elif name == CALL_ARGUMENTS and (state is _State.HEADER or self._header.strip()):
            self._start_call()
        elif name in (CALL_END, SECTION_END) and state in (_State.HEADER, _State.ARGUMENTS):
            self._leave(_State.BETWEEN)
        # Any other control token has no meaning here and must not leak.

    def _leave(self, to: _State) -> None:
        """Finish what is open and enter another state."""
        self._write(self._decoder.decode(b"", final=True))
        match self._state:
            case _State.REASONING:
                self._finish_thinking(before_calls=to not in (_State.CONTENT, _State.DONE))
            case _State.CONTENT:
                self._finish_text(before_calls=to is not _State.DONE)
            case _State.ARGUMENTS:
                self._finish_call()
        self._suppressed += self._header
        self._header = ""
        self._state = to

    def _end(self) -> None:
        if self._state is _State.DONE:
            return
        open_call = self._state is _State.ARGUMENTS
        self._leave(_State.DONE)
        self.truncated = open_call and not is_json("".join(self._arguments))
        if not self._calls and (text := self._suppressed.strip()):
            # A section without one usable call: better shown as text than lost as an empty turn.
            self._emit(TextDelta(text))

    # ---- text

    def _write(self, text: str) -> None:
        if not text:
            return
        match self._state:
            case _State.REASONING | _State.CONTENT if text.isspace() and self._held[-1:].isspace():
                # What is held is not looked through again: a model that writes blanks without end must not
                # cost more and more for each.
                self._held += text
            case _State.REASONING:
                self._write_thinking(self._held + text)
            case _State.CONTENT:
                self._write_text(self._held + text)
            case _State.BETWEEN | _State.HEADER:
                self._header += text
            case _State.ARGUMENTS:
                self._write_arguments(text)

    def _write_thinking(self, text: str) -> None:
        """Show the thinking but for blanks at its end, and what may become MISSPELT_SECTION."""
        shown = text[: _settled(text)].rstrip()
        self._held = text[len(shown) :]
        if shown:
            self._emit(ThinkingDelta(shown))

    def _finish_thinking(self, *, before_calls: bool) -> None:
        text = self._held.rstrip()
        if before_calls:
            text = text.removesuffix(MISSPELT_SECTION).rstrip()
        if text:
            self._emit(ThinkingDelta(text))
        self._held = ""

    def _write_text(self, text: str) -> None:
        """Show the text but for blanks before anything else, and what may become MISSPELT_SECTION."""
        shown = text[: _settled(text)]
        if not self._has_text and not shown.strip():
            self._held = text
            return
        self._held = text[len(shown) :]
        self._has_text = True
        if shown:
            self._emit(TextDelta(shown))

    def _finish_text(self, *, before_calls: bool) -> None:
        text = self._held
        if before_calls and text.rstrip().endswith(MISSPELT_SECTION):
            text = text.rstrip().removesuffix(MISSPELT_SECTION)
        blank = not self._has_text and not text.strip()
        if text and not (before_calls and blank):
            self._emit(TextDelta(text))
        self._held = ""

    # ---- calls

    def _start_call(self) -> None:
        self._write(self._decoder.decode(b"", final=True))
        name = call_name(self._header, self._tools)
        self._header = ""
        self._held = ""
        self._has_arguments = False
        self._arguments = []
        self._unnamed = name is None
        self._calls += 1
        if name is not None:
            self._announce(name)
        self._state = _State.ARGUMENTS

    def _announce(self, name: str) -> None:
        position = self._calls - 1
        self._emit(ToolCallStarted(position, call_id(name, self._first_call + position), name))

    def _write_arguments(self, text: str) -> None:
        if self._unnamed or not (self._has_arguments or text.strip()):
            self._held += text
            return
        self._emit(ToolCallDelta(self._calls - 1, self._held + text))
        self._arguments.append(self._held + text)
        self._held = ""
        self._has_arguments = True

    def _finish_call(self) -> None:
        if self._unnamed:
            self._announce(tool_by_arguments(self._held, self._tools))
            self._unnamed = False
            held, self._held = self._held, ""
            self._write_arguments(held)
        if not self._has_arguments:
            self._emit(ToolCallDelta(self._calls - 1, "{}"))
        self._held = ""

    # ---- events

    def _emit(self, event: Event) -> None:
        """Append the event; deltas of one portion that follow each other become one."""
        last = self._events[-1] if self._events else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            self._events[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, ThinkingDelta) and isinstance(last, ThinkingDelta):
            self._events[-1] = ThinkingDelta(last.text + event.text)
        elif (
            isinstance(event, ToolCallDelta) and isinstance(last, ToolCallDelta) and last.index == event.index
        ):
            self._events[-1] = ToolCallDelta(event.index, last.arguments + event.arguments)
        else:
            self._events.append(event)

    def _drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def _settled(text: str) -> int:
    """How much of the text is text whatever follows: the rest may become MISSPELT_SECTION before a call."""
    start = text.rfind("<")
    tail = text[start:] if start >= 0 else ""
    held = MISSPELT_SECTION.startswith(tail) or tail.rstrip() == MISSPELT_SECTION
    return len(text) - len(tail) if held else len(text)
