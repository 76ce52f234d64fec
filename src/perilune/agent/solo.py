"""Run one agent in memory: a backend, a workspace, no journal. For examples and evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from perilune.agent.loop import (
    AgentState,
    AnswerRecord,
    CallModel,
    Done,
    Record,
    Restart,
    RestartRecord,
    RunTools,
    ToolRecord,
    apply,
    next_action,
    start,
)
from perilune.agent.profiles import Profile, bundled_profile
from perilune.agent.sandbox import Sandbox
from perilune.agent.tools import run_tool
from perilune.agent.tools.context import ToolContext
from perilune.agent.workspace import Workspace
from perilune.backends.base import Backend, complete
from perilune.chat.messages import ToolCall, Usage
from perilune.errors import ContextTooLong


@dataclass(frozen=True)
class SoloResult:
    status: Literal["succeeded", "failed"]
    message: str
    """The agent's last sentence."""
    steps: int
    """Model calls."""
    records: tuple[Record, ...]
    """All that happened: `fold(start(...), records)` is the final state."""
    usage: Usage
    """Sum over all model calls."""


async def run_agent(
    backend: Backend,
    profile: Profile | str,
    system_prompt: str,
    prompt: str,
    workspace: Workspace,
    *,
    model: str,
    sandbox: Sandbox | None = None,
    cache_salt: str = "",
    seed: int | None = None,
) -> SoloResult:
    """Run an agent to its end. `system_prompt` may be empty.

    Raises what the backend raises (BackendError, EngineError); tool failures go to the model."""
    chosen = bundled_profile(profile) if isinstance(profile, str) else profile
    state = start(
        chosen, model=model, prompt=prompt, system_prompt=system_prompt, cache_salt=cache_salt, seed=seed
    )
    records: list[Record] = []
    while not isinstance(action := next_action(state), Done):
        for record in await _perform(action, backend, state, workspace, sandbox):
            records.append(record)
            state = apply(state, record)
    return SoloResult(action.status, action.message, state.steps, tuple(records), _total(records))


async def _perform(
    action: CallModel | RunTools | Restart,
    backend: Backend,
    state: AgentState,
    workspace: Workspace,
    sandbox: Sandbox | None,
) -> list[Record]:
    match action:
        case CallModel():
            try:
                return [AnswerRecord(await complete(backend, action.request))]
            except ContextTooLong:
                return [RestartRecord("the prompt exceeds the model's context")]
        case RunTools():
            context = ToolContext.of(action, workspace, state.profile, sandbox)
            return [await _run(call, context) for call in action.calls[:1]]
        case Restart():
            return [RestartRecord(action.reason)]


async def _run(call: ToolCall, context: ToolContext) -> Record:
    result = await run_tool(call, context)
    return ToolRecord(call.id, result.content, result.ok, result.mutated, result.settled)


def _total(records: list[Record]) -> Usage:
    usages = [record.completion.usage for record in records if isinstance(record, AnswerRecord)]
    fields = Usage.__struct_fields__
    return msgspec.structs.replace(
        Usage(), **{field: sum(getattr(usage, field) for usage in usages) for field in fields}
    )
