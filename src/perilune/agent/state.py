"""What an agent is: immutable state, folded from records. Pure: no clock, no file, no model.

    start(...) -> AgentState --apply(record)--> AgentState --apply(record)--> ...

Whoever runs the agent writes down each record before it acts on the next, so the state after a crash is
the fold of the same records. `agent/loop.py` says what to do next in a state.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from perilune.agent import binding
from perilune.agent.calls import Refusal, check_call, same_call
from perilune.agent.profiles import Profile
from perilune.chat.messages import Completion, Message, ToolCall

FAILING_REPEATS = 3
"""The same failing call this often in a row is a loop."""
REPEATS = 12
"""The same call this often in a row is a loop even when it succeeds."""

NUDGE_EMPTY = "Your answer was empty. Call a tool, or finish with one sentence."
NUDGE_CUT = "Your answer was cut off at the length limit. Answer again, shorter."


class AnswerRecord(msgspec.Struct, frozen=True, tag="answer"):
    """The model answered."""

    completion: Completion


class ToolRecord(msgspec.Struct, frozen=True, tag="tool"):
    """A tool call was answered."""

    call_id: str
    content: str
    ok: bool = True
    mutated: bool = False
    settled: bool = False
    """The tool saw nothing left of what it works on: no restart is worth its price now."""


class RestartRecord(msgspec.Struct, frozen=True, tag="restart"):
    """The context was dropped; the agent begins anew with the same instructions."""

    reason: str


class NoteRecord(msgspec.Struct, frozen=True, tag="note"):
    """A message to the agent from outside, delivered between two steps; it reopens a finished agent."""

    text: str


Record = AnswerRecord | ToolRecord | RestartRecord | NoteRecord


class Turn(msgspec.Struct, frozen=True):
    """One answer of the model and what came back for it."""

    answer: Message
    results: Mapping[str, ToolRecord] = msgspec.field(default_factory=dict)
    """By call id; complete when every call of the answer has one."""
    note: str | None = None
    """Said to the agent after this turn."""

    @property
    def pending(self) -> tuple[ToolCall, ...]:
        return tuple(call for call in self.answer.tool_calls if call.id not in self.results)

    def messages(self) -> tuple[Message, ...]:
        tools = tuple(
            Message(role="tool", content=self.results[call.id].content, tool_call_id=call.id, name=call.name)
            for call in self.answer.tool_calls
            if call.id in self.results
        )
        notes = () if self.note is None else (Message(role="user", content=self.note),)
        # Some endpoints refuse an assistant message with neither text nor calls.
        said = (self.answer,) if self.answer.content or self.answer.tool_calls else ()
        return (*said, *tools, *notes)

    def calls(self, names: Iterable[str]) -> bool:
        wanted = set(names)
        return any(call.name in wanted for call in self.answer.tool_calls)


class Outcome(msgspec.Struct, frozen=True):
    status: Literal["succeeded", "failed"]
    message: str
    """The agent's last sentence, or `Failed: REASON.` where the loop ended it."""


class AgentState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one agent. Serialisable with msgspec, as JSON or MessagePack."""

    profile: Profile
    model: str
    head: tuple[Message, ...]
    """System message, if any, and the first user message: never dropped."""
    cache_salt: str = ""
    prompt_cache_key: str | None = None
    seed: int | None = None
    turns: tuple[Turn, ...] = ()
    """Of the current context; turns that the rolling policy will never send again are gone."""
    opening_note: str | None = None
    """A note that came before the context's first answer."""
    steps: int = 0
    """Model calls over the agent's whole life."""
    calls: int = 0
    """Tool calls over the agent's whole life: `RunTools` numbers them on, so an id names one call for ever;
    the request counts them from 0 again."""
    edits: int = 0
    """Successful mutating calls in this context."""
    total_edits: int = 0
    restarts: int = 0
    idle_restarts: int = 0
    """Restarts in a row whose context got nothing done."""
    context_tokens: int = 0
    """Prompt and answer of the last model call of this context."""
    repeated: int = 0
    last_call: str = ""
    last_call_failed: bool = False
    nudged: bool = False
    outcome: Outcome | None = None


def start(
    profile: Profile,
    *,
    model: str,
    prompt: str,
    system_prompt: str = "",
    cache_salt: str = "",
    prompt_cache_key: str | None = None,
    seed: int | None = None,
) -> AgentState:
    """A fresh agent: `system_prompt` are its own instructions, `prompt` its task."""
    system = "\n\n".join(part for part in (profile.system_prompt, system_prompt) if part)
    head = (
        *((Message(role="system", content=system),) if system else ()),
        Message(role="user", content=prompt),
    )
    return AgentState(
        profile=profile,
        model=model,
        head=head,
        cache_salt=cache_salt,
        prompt_cache_key=prompt_cache_key,
        seed=seed,
    )


def fold(state: AgentState, records: Iterable[Record]) -> AgentState:
    for record in records:
        state = apply(state, record)
    return state


def apply(state: AgentState, record: Record) -> AgentState:
    """The state after this record. Raises ValueError for a record that cannot follow (a bug of the
    runner, or a journal that is not this agent's)."""
    match record:
        case AnswerRecord():
            return _answered(state, record.completion)
        case ToolRecord():
            return _tool_answered(state, record)
        case RestartRecord():
            return _restarted(state)
        case NoteRecord():
            return _noted(state, record.text)


def sent_turns(state: AgentState) -> tuple[Turn, ...]:
    """The turns that the next request carries, oldest first."""
    policy = state.profile.context
    if policy.policy == "append":
        return state.turns
    starts = [index for index, turn in enumerate(state.turns) if turn.calls(policy.round_starts)]
    if not starts:
        return state.turns
    first = starts[-policy.rounds] if len(starts) >= policy.rounds else starts[0]
    return tuple(turn for index, turn in enumerate(state.turns) if index >= first or _creates_agent(turn))


def sent_messages(state: AgentState) -> tuple[Message, ...]:
    """The messages of the next request, call ids counted from 0 over just these messages."""
    opening = () if state.opening_note is None else (Message(role="user", content=state.opening_note),)
    messages = (*state.head, *opening, *(m for turn in sent_turns(state) for m in turn.messages()))
    return renumbered(messages)


def renumbered(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Call ids rewritten to `functions.NAME:IDX`, IDX counting calls over the messages given."""
    done: list[Message] = []
    names: dict[str, str] = {}
    count = 0
    for message in messages:
        if message.tool_calls:
            calls = []
            for call in message.tool_calls:
                names[call.id] = f"functions.{call.name}:{count}"
                calls.append(msgspec.structs.replace(call, id=names[call.id]))
                count += 1
            message = msgspec.structs.replace(message, tool_calls=tuple(calls))
        elif message.tool_call_id is not None:
            message = msgspec.structs.replace(message, tool_call_id=names[message.tool_call_id])
        done.append(message)
    return tuple(done)


def _answered(state: AgentState, completion: Completion) -> AgentState:
    if state.turns and state.turns[-1].pending:
        raise ValueError("an answer while tool calls of the last one are open")
    answer = _unique_ids(completion.message, state)
    usage = completion.usage
    state = msgspec.structs.replace(
        state,
        steps=state.steps + 1,
        calls=state.calls + len(answer.tool_calls),
        context_tokens=usage.prompt_tokens + usage.completion_tokens,
        outcome=None,
    )
    cut = completion.finish_reason == "length" and not answer.tool_calls
    text = answer.content.strip() if isinstance(answer.content, str) else ""
    if not answer.tool_calls and (cut or not text):
        return _nudged(state, answer, NUDGE_CUT if cut and text else NUDGE_EMPTY)
    choices = binding.resolve(state.profile, sent_messages(state))
    refused = _refusals(state.profile, choices, answer.tool_calls)
    state = _with_turns(state, (*state.turns, Turn(answer, refused)), nudged=False)
    if not answer.tool_calls:
        status: Literal["succeeded", "failed"] = "failed" if text.startswith("Failed:") else "succeeded"
        return msgspec.structs.replace(state, outcome=Outcome(status, text))
    return _turn_ended(state) if not state.turns[-1].pending else state


def _nudged(state: AgentState, answer: Message, text: str) -> AgentState:
    if state.nudged:
        reason = "answer too long" if text == NUDGE_CUT else "empty answer"
        return _with_turns(
            state, (*state.turns, Turn(answer)), outcome=Outcome("failed", f"Failed: {reason}.")
        )
    return _with_turns(state, (*state.turns, Turn(answer, note=text)), nudged=True)


def _refusals(
    profile: Profile, choices: binding.Choices, calls: tuple[ToolCall, ...]
) -> dict[str, ToolRecord]:
    """Answers to the calls that no tool may see: malformed, unknown, not copied, one too many."""
    refused: dict[str, ToolRecord] = {}
    for position, call in enumerate(calls):
        found = check_call(profile, call)
        if isinstance(found, Refusal):
            text: str | None = found.text
        elif position >= profile.max_parallel_calls:
            text = f"error: at most {profile.max_parallel_calls} calls in one answer"
        else:
            wrong = (
                None
                if call.name in binding.ANSWERS_ITSELF
                else binding.violation(profile, choices, call.name, found)
            )
            text = wrong.text() if wrong else None
        if text is not None:
            refused[call.id] = ToolRecord(call.id, text, ok=False)
    return refused


def _unique_ids(answer: Message, state: AgentState) -> Message:
    """Canonical ids, unique over the agent's life whatever the endpoint wrote."""
    calls = tuple(
        msgspec.structs.replace(call, id=f"functions.{call.name}:{state.calls + position}")
        for position, call in enumerate(answer.tool_calls)
    )
    return msgspec.structs.replace(answer, tool_calls=calls)


def _tool_answered(state: AgentState, record: ToolRecord) -> AgentState:
    last = state.turns[-1] if state.turns else None
    if last is None or record.call_id not in {call.id for call in last.pending}:
        raise ValueError(f"no open tool call {record.call_id!r}")
    turn = msgspec.structs.replace(last, results={**last.results, record.call_id: record})
    edits = int(record.ok and record.mutated)
    state = msgspec.structs.replace(
        state,
        turns=(*state.turns[:-1], turn),
        edits=state.edits + edits,
        total_edits=state.total_edits + edits,
        idle_restarts=0 if edits or _is_progress(last, record) else state.idle_restarts,
    )
    return state if turn.pending else _turn_ended(state)


def _turn_ended(state: AgentState) -> AgentState:
    """Every call is answered: finish, break a loop, or go on."""
    turn = state.turns[-1]
    for call in turn.answer.tool_calls:
        if call.name == state.profile.finish_tool and turn.results[call.id].ok:
            summary = str(json.loads(call.arguments).get("summary", "")).strip()
            return msgspec.structs.replace(state, outcome=Outcome("succeeded", summary or "Done."))
    return _count_repeats(state, turn)


def _count_repeats(state: AgentState, turn: Turn) -> AgentState:
    """Counts in the order of the answer, not of the tools' arrival; calls repeated within one turn
    count once."""
    seen: set[str] = set()
    for call in turn.answer.tool_calls:
        key, failed = same_call(call), not turn.results[call.id].ok
        if key in seen:
            continue
        seen.add(key)
        again = key == state.last_call and failed == state.last_call_failed
        repeated = state.repeated + 1 if again else 1
        state = msgspec.structs.replace(state, last_call=key, last_call_failed=failed, repeated=repeated)
        if repeated >= (FAILING_REPEATS if failed else REPEATS):
            return msgspec.structs.replace(state, outcome=Outcome("failed", "Failed: loop."))
    return state


def _restarted(state: AgentState) -> AgentState:
    if state.turns and state.turns[-1].pending:
        raise ValueError("a restart while tool calls are open")
    idle = not any(
        record.ok and (record.mutated or _is_progress(turn, record))
        for turn in state.turns
        for record in turn.results.values()
    )
    state = msgspec.structs.replace(
        state,
        turns=tuple(turn for turn in state.turns if _creates_agent(turn)),
        opening_note=None,
        edits=0,
        restarts=state.restarts + 1,
        idle_restarts=state.idle_restarts + 1 if idle else 0,
        context_tokens=0,
        nudged=False,
        outcome=None,
    )
    note = state.profile.context.restart_note
    return _noted(state, note) if note else state


def _noted(state: AgentState, text: str) -> AgentState:
    if not state.turns:
        joined = text if state.opening_note is None else f"{state.opening_note}\n\n{text}"
        return msgspec.structs.replace(state, opening_note=joined)
    last = state.turns[-1]
    if last.pending:
        raise ValueError("a note while tool calls are open")
    note = text if last.note is None else f"{last.note}\n\n{text}"
    turn = msgspec.structs.replace(last, note=note)
    return msgspec.structs.replace(state, turns=(*state.turns[:-1], turn), outcome=None)


def _with_turns(
    state: AgentState, turns: tuple[Turn, ...], *, nudged: bool | None = None, outcome: Outcome | None = None
) -> AgentState:
    state = msgspec.structs.replace(state, turns=turns, outcome=outcome)
    # Only what may be sent again is kept, so 300 assignments cost no more memory than eight.
    state = msgspec.structs.replace(state, turns=sent_turns(state))
    return state if nudged is None else msgspec.structs.replace(state, nudged=nudged)


def _is_progress(turn: Turn, record: ToolRecord) -> bool:
    """A task handed out and answered: for an orchestrator what an edit is for others."""
    return record.ok and any(
        call.id == record.call_id and call.name == "assign_task" for call in turn.answer.tool_calls
    )


def _creates_agent(turn: Turn) -> bool:
    return any(
        call.name == "create_subagent" and call.id in turn.results and turn.results[call.id].ok
        for call in turn.answer.tool_calls
    )
