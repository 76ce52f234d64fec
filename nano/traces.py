"""Traces: what the product would send and a perfect model would answer, in the product's own state machine.

An *oracle* answers each request as a function of its messages alone, so every trained token can be known
from the context. A *world* answers the tool calls. Both are driven through `agent.loop`, so the bytes are
those of a real run. A slip (an answer that is not the oracle's) is never trained, only what follows it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from perilune.agent.loop import (
    AgentState,
    AnswerRecord,
    CallModel,
    Done,
    Restart,
    RestartRecord,
    RunTools,
    ToolRecord,
    apply,
    next_action,
)
from perilune.agent.state import renumbered
from perilune.chat.messages import Completion, FinishReason, Message, ToolCall, Usage
from perilune.chat.template import encode, render
from perilune.chat.tokenizer import (
    CALL_ARGUMENTS,
    CALL_BEGIN,
    CALL_END,
    END_THINK,
    IM_ASSISTANT,
    IM_END,
    SECTION_BEGIN,
    Tokenizer,
)

DECISION, ORDINARY = 3.0, 1.0


@dataclass(frozen=True)
class Answer:
    """One answer of the oracle (or a slip): text, or calls as (tool, arguments)."""

    text: str = ""
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    trained: bool = True


Oracle = Callable[[Sequence[Message]], Answer]
World = Callable[[RunTools, AgentState], Sequence[ToolRecord]]


@dataclass(frozen=True)
class Trace:
    """One context to its end: the messages, and for each of its assistant messages whether it is trained."""

    state: AgentState
    messages: tuple[Message, ...]
    trained: tuple[bool, ...]


def run(state: AgentState, oracle: Oracle, world: World, *, most_steps: int = 40) -> Iterator[Trace]:
    """Drive the agent; yields each of its contexts when it ends or makes room for another."""
    sequence: tuple[Message, ...] = ()
    flags: list[bool] = []
    for _ in range(most_steps * 2):
        action = next_action(state)
        match action:
            case Done():
                break
            case CallModel():
                messages = action.request.messages
                if messages[: len(sequence)] != sequence:
                    yield Trace(state, sequence, tuple(flags))
                    # What the new context keeps of the old one was trained there.
                    flags = [False] * sum(message.role == "assistant" for message in messages)
                answer = oracle(messages)
                said = _message(answer)
                sequence = renumbered((*messages, said))
                flags.append(answer.trained)
                reason: FinishReason = "tool_calls" if answer.calls else "stop"
                completion = Completion(message=said, finish_reason=reason, usage=Usage())
                state = apply(state, AnswerRecord(completion))
            case RunTools():
                for record in world(action, state):
                    state = apply(state, record)
            case Restart():
                state = apply(state, RestartRecord(action.reason))
        if state.steps >= most_steps:
            break
    if sequence:
        yield Trace(state, sequence, tuple(flags))


def _message(answer: Answer) -> Message:
    calls = tuple(
        ToolCall(
            id=f"functions.{tool}:{place}", name=tool, arguments=json.dumps(arguments, ensure_ascii=False)
        )
        for place, (tool, arguments) in enumerate(answer.calls)
    )
    return Message(role="assistant", content=answer.text, tool_calls=calls)


# ---- to token ids and weights


class Encoder:
    """Traces to (ids, weights): weight 0 is context, ORDINARY and DECISION tokens are learnt."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        special = tokenizer.special
        self._end, self._think = special(IM_END), special(END_THINK)
        self._assistant, self._call_end = special(IM_ASSISTANT), special(CALL_END)
        self._after = {special(name) for name in (CALL_END, SECTION_BEGIN, CALL_BEGIN)}
        self._arguments = special(CALL_ARGUMENTS)
        self._colon, self._open = self._one('":'), self._one(' "')
        self._space, self._dot = self._one(" "), self._one(".")
        self._digits = {self._one(digit) for digit in "0123456789"}
        self._closers = {self._one('",'), self._one('"}')}
        self._name, self._prompt, self._join = self._one("name"), self._one("prompt"), self._one("_")

    def _one(self, text: str) -> int:
        (token,) = self._tokenizer.encode(text)
        return token

    def __call__(self, trace: Trace, *, bare: bool = False) -> tuple[list[int], list[float]]:
        """`bare` leaves the tool declarations out: a third of a short trace, and always the same."""
        profile = trace.state.profile
        tools = () if bare else profile.tools
        pieces = render(trace.messages, tools, thinking=profile.thinking, generate=False)
        ids = encode(pieces, self._tokenizer)
        weights = [0.0] * len(ids)
        for (start, end), trained in zip(self._spans(ids), trace.trained, strict=True):
            if trained:
                self._weigh(ids, weights, start, end)
        return ids, weights

    def _spans(self, ids: list[int]) -> Iterator[tuple[int, int]]:
        """(first, last + 1) of what each assistant message adds to its prompt, the end mark included."""
        place = 0
        while True:
            try:
                place = ids.index(self._assistant, place)
            except ValueError:
                return
            start = ids.index(self._think, place) + 1
            place = ids.index(self._end, start) + 1
            yield start, place

    def _weigh(self, ids: list[int], weights: list[float], start: int, end: int) -> None:
        """Choices weigh more than spelling: where a call, a value or the end begins, and all of a
        number or name: the old name may begin the new one, so each token decides whether to end."""
        inside_name = in_number = False
        for at in range(start, end):
            before, two = ids[at - 1], ids[at - 2]
            begins_text = before == self._open and two == self._colon
            begins_number = before == self._space and two == self._colon
            in_number = ids[at] in self._digits and (in_number or begins_number)
            chosen = (
                at == start
                or before in self._after
                or begins_text
                or in_number
                or ids[at] in self._closers
                or (before == self._dot and ids[at - 3] == self._after_begin(ids, at))
            )
            if begins_text:
                inside_name = self._holds_names(ids, at - 3)
            weights[at] = DECISION if chosen or inside_name else ORDINARY
            if ids[at] in self._closers:
                inside_name = False

    def _holds_names(self, ids: list[int], last: int) -> bool:
        """Whether the key that ends at `last` is `name`, `old_name`, `new_name` or `system_prompt`."""
        key = ids[last]
        return key == self._name or (key == self._prompt and ids[last - 1] == self._join)

    def _after_begin(self, ids: list[int], at: int) -> int:
        """The id that stands before `functions.` where `at` is the first token of a tool's name."""
        return ids[at - 3] if ids[at - 3] in self._after else -1


def replace_state(state: AgentState, **changes: Any) -> AgentState:
    return msgspec.structs.replace(state, **changes)
