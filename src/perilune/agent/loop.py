"""The agent loop, as a pure function: what to do next in a state.

    action = next_action(state)
    CallModel(request)   ask the model, apply AnswerRecord(completion)
    RunTools(calls...)   run them, apply one ToolRecord per call
    Restart(reason)      apply RestartRecord(reason)
    Done(status, ...)    the agent has ended

All policies live here and in `agent/state.py`; whoever runs an agent (`agent/solo.py` in memory, the
swarm with a journal) only performs the action and writes the record down. The request is byte-stable:
tools, head, then messages that are only ever appended to, until a restart or a new round.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from perilune.agent import binding
from perilune.agent.state import (
    AgentState,
    AnswerRecord,
    NoteRecord,
    Outcome,
    Record,
    RestartRecord,
    ToolRecord,
    Turn,
    apply,
    fold,
    sent_messages,
    start,
)
from perilune.chat.messages import Request, ToolCall

__all__ = [
    "Action",
    "AgentState",
    "AnswerRecord",
    "CallModel",
    "Done",
    "NoteRecord",
    "Outcome",
    "Record",
    "Restart",
    "RestartRecord",
    "RunTools",
    "ToolRecord",
    "Turn",
    "apply",
    "fold",
    "next_action",
    "sent_messages",
    "start",
]

IDLE_RESTARTS = 2
"""After so many restarts in a row that got nothing done the agent is only re-reading."""
CHARACTERS_PER_TOKEN = 3
"""To guess the size of tool results that no usage has counted yet; few, so the guess is high."""


class CallModel(msgspec.Struct, frozen=True, tag="call_model"):
    request: Request


class RunTools(msgspec.Struct, frozen=True, tag="run_tools"):
    calls: tuple[ToolCall, ...]
    """The calls still unanswered, in the order of the answer; well-formed and allowed."""
    choices: binding.Choices
    """What the bound arguments may hold, for tools that check this themselves."""
    edits: int
    """Successful edits in this context before these calls."""
    earlier: tuple[ToolCall, ...]
    """The calls of this context that succeeded, oldest first."""


class Restart(msgspec.Struct, frozen=True, tag="restart"):
    reason: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    status: Literal["succeeded", "failed"]
    message: str


Action = CallModel | RunTools | Restart | Done


def next_action(state: AgentState) -> Action:
    """What to do next. The same state always gives the same action."""
    turn = state.turns[-1] if state.turns else None
    if turn is not None and turn.pending:
        return _run_tools(state, turn)
    if state.outcome is not None:
        return Done(state.outcome.status, state.outcome.message)
    if state.steps >= state.profile.max_steps:
        return Done("failed", "Failed: step limit.")
    if state.idle_restarts >= IDLE_RESTARTS:
        return Done("failed", "Failed: context full.")
    reason = _restart_reason(state)
    return CallModel(request_of(state)) if reason is None else Restart(reason)


def request_of(state: AgentState) -> Request:
    """The model call of this state."""
    profile, messages = state.profile, sent_messages(state)
    return Request(
        model=state.model,
        messages=messages,
        tools=profile.tools,
        thinking=profile.thinking,
        max_tokens=profile.sampling.max_tokens,
        temperature=profile.sampling.temperature,
        top_p=profile.sampling.top_p,
        seed=state.seed,
        argument_choices=binding.offered(binding.resolve(profile, messages)),
        cache_salt=state.cache_salt,
        prompt_cache_key=state.prompt_cache_key,
        max_parallel_calls=profile.max_parallel_calls,
    )


def _run_tools(state: AgentState, turn: Turn) -> RunTools:
    before = msgspec.structs.replace(state, turns=state.turns[:-1])
    earlier = tuple(
        call
        for past in state.turns
        for call in past.answer.tool_calls
        if call.id in past.results and past.results[call.id].ok
    )
    choices = binding.resolve(state.profile, sent_messages(before))
    return RunTools(turn.pending, choices, state.edits, earlier)


def _restart_reason(state: AgentState) -> str | None:
    if not state.turns or state.turns[-1].note is not None:
        return None
    policy = state.profile.context
    if any(result.settled for result in state.turns[-1].results.values()):
        return None
    if policy.restart_after_edits is not None and state.edits >= policy.restart_after_edits:
        return f"{state.edits} edits in this context"
    begins_round = policy.policy == "rolling" and state.turns[-1].calls(policy.round_starts)
    uncounted = sum(len(result.content) for result in state.turns[-1].results.values())
    tokens = state.context_tokens + uncounted // CHARACTERS_PER_TOKEN
    # A new round drops the old one, so its size says nothing about the next prompt.
    if tokens > policy.max_tokens and state.context_tokens and not begins_round:
        return f"about {tokens} tokens of context"
    return None
