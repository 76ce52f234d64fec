"""The journal's vocabulary: everything that can happen in a session, as data.

An event is written down before its effect is relied on: an intent (`ModelStarted`, `ToolStarted`,
`MergeIntended`) before the effect, its result after. `swarm/state.py` folds events into the session's
state, live and after a crash alike. Old journals must stay readable: fields are only ever added, with a
default, and `SessionStarted.version` counts what cannot be said that way.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from perilune.agent.loop import AnswerRecord, NoteRecord, RestartRecord, ToolRecord
from perilune.agent.profiles import Profile
from perilune.backends.base import ModelEntry
from perilune.swarm.workspaces import FileChange

VERSION = 1
ORCHESTRATOR = "orchestrator"
"""The orchestrator's id wherever an event names an agent; a sub-agent has its assignment's id."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Ceilings over the whole session. None: no ceiling."""

    steps: int = 4000
    """Model calls."""
    tokens: int | None = None
    """Prompt and completion together."""
    nano_usd: int | None = None


# ---- the session


class SessionStarted(msgspec.Struct, frozen=True, kw_only=True, tag="session_started"):
    """All that a resume needs to go on as if nothing had happened: later upgrades of profiles, entries or
    settings do not change a running session."""

    id: str
    goal: str
    repo: str
    """Root of the user's repository."""
    base: str
    """The commit the session works from."""
    branch: str
    """The result's branch, without refs/heads/."""
    entry: ModelEntry
    orchestrator: Profile
    subagent: Profile
    profile_hashes: dict[str, str]
    budget: Budget
    agents: int = 300
    """Most sub-agents that live at once."""
    retries: int = 2
    check: tuple[str, ...] = ()
    """Command that accepts or rejects an assignment's changes; empty: none."""
    files: tuple[str, ...] = ()
    """The files a rename goal is about, sorted; empty for other goals."""
    affected: int = 0
    """How many of them hold the old name."""
    cache_salt: str = ""
    version: int = VERSION


class SessionResumed(msgspec.Struct, frozen=True, tag="session_resumed"):
    """Another process took the session up. Claims of the dead one return to the queue, and its unanswered
    model calls are accounted for."""


class BudgetChanged(msgspec.Struct, frozen=True, tag="budget_changed"):
    budget: Budget


class SessionStopped(msgspec.Struct, frozen=True, kw_only=True, tag="session_stopped"):
    """The session paused; it can be resumed."""

    reason: str
    """Code of the error that stopped it (`budget_exhausted`, `backend_auth`, ...) or `interrupted`."""
    message: str
    """One line, with the mend."""


class SessionFinished(msgspec.Struct, frozen=True, kw_only=True, tag="session_finished"):
    """Nothing is left to do. `complete` only when every assignment, and for a rename every file, is done."""

    status: Literal["complete", "incomplete"]
    message: str
    """The orchestrator's last sentence."""
    tip: str
    """The branch's commit at the end."""


# ---- sub-agents and their work


class AgentCreated(msgspec.Struct, frozen=True, kw_only=True, tag="agent_created"):
    """A kind of sub-agent, by the orchestrator's `create_subagent`. Starts nothing."""

    name: str
    system_prompt: str


class AssignmentQueued(msgspec.Struct, frozen=True, kw_only=True, tag="assignment_queued"):
    id: str
    key: str
    """What makes two `assign_task` calls the same work: the path for a rename, else agent and prompt."""
    agent: str
    prompt: str
    stage: int
    """Number of the orchestrator's step that asked for it: assignments of one stage are one wave."""
    base: str
    """The commit its workspace lies over."""


class AssignmentRequeued(msgspec.Struct, frozen=True, kw_only=True, tag="assignment_requeued"):
    """The orchestrator handed out a failed assignment again."""

    id: str
    stage: int
    base: str


class AssignmentClaimed(msgspec.Struct, frozen=True, kw_only=True, tag="assignment_claimed"):
    """It has one of the live places."""

    id: str


class AttemptStarted(msgspec.Struct, frozen=True, kw_only=True, tag="attempt_started"):
    id: str
    attempt: int
    """Counts from 0 over the assignment's life."""
    base: str
    carry: bool = False
    """Go on with the last attempt's conversation and changes; otherwise both start empty."""
    note: str = ""
    """Said to the agent at the start: why the last attempt was not taken."""
    seed: int | None = None
    temperature: float | None = None
    """Instead of the profile's: a greedy agent would only repeat its mistake."""


class AttemptEnded(msgspec.Struct, frozen=True, kw_only=True, tag="attempt_ended"):
    """The agent said that it is done, or that it failed. Its changes are those journalled so far."""

    id: str
    attempt: int
    status: Literal["succeeded", "failed"]
    message: str


class VerdictGiven(msgspec.Struct, frozen=True, kw_only=True, tag="verdict_given"):
    id: str
    attempt: int
    accepted: bool
    reason: str = ""


class MergeIntended(msgspec.Struct, frozen=True, kw_only=True, tag="merge_intended"):
    """`commit` follows from base, changes, message and `when`: made again it has the same id."""

    id: str
    attempt: int
    commit: str
    message: str
    when: int
    """The commit's date, in seconds since 1970."""


class Merged(msgspec.Struct, frozen=True, kw_only=True, tag="merged"):
    id: str
    attempt: int
    commit: str
    tip: str
    paths: tuple[str, ...]


class MergeRefused(msgspec.Struct, frozen=True, kw_only=True, tag="merge_refused"):
    """Another assignment changed the same lines first."""

    id: str
    attempt: int
    reason: str
    paths: tuple[str, ...] = ()


class RetryScheduled(msgspec.Struct, frozen=True, kw_only=True, tag="retry_scheduled"):
    id: str
    attempt: int
    """The attempt that was not taken."""
    reason: str


class AssignmentDone(msgspec.Struct, frozen=True, kw_only=True, tag="assignment_done"):
    """Accepted and, where anything changed, merged."""

    id: str
    answer: str
    """What the orchestrator is told."""


class DeadLettered(msgspec.Struct, frozen=True, kw_only=True, tag="dead_lettered"):
    """No retry is left: it is listed as not done."""

    id: str
    attempts: int
    reason: str
    answer: str


# ---- one agent's life: intents before, records after. `agent` is ORCHESTRATOR or an assignment's id.


class ModelStarted(msgspec.Struct, frozen=True, kw_only=True, tag="model_started"):
    """A model call is about to be made; so much of the budget is reserved for it."""

    agent: str
    tokens: int
    nano_usd: int
    billable: bool = False
    """The model runs elsewhere: when nobody hears the answer it may have been charged all the same."""


class ModelAnswered(msgspec.Struct, frozen=True, kw_only=True, tag="model_answered"):
    """The reservation is settled at what was used."""

    agent: str
    record: AnswerRecord
    nano_usd: int


class ModelFailed(msgspec.Struct, frozen=True, kw_only=True, tag="model_failed"):
    """The call came to nothing; it is made again after `retry_ms`, or not (None)."""

    agent: str
    code: str
    message: str
    charged: bool = False
    """It may have been charged, so the whole reservation counts as spent."""
    retry_ms: int | None = None


class ToolStarted(msgspec.Struct, frozen=True, kw_only=True, tag="tool_started"):
    agent: str
    call_id: str
    name: str


class ToolFinished(msgspec.Struct, frozen=True, kw_only=True, tag="tool_finished"):
    """The answer, and what the call left in the workspace: the workspace can be rebuilt from these."""

    agent: str
    record: ToolRecord
    written: tuple[FileChange, ...] = ()
    reverted: tuple[str, ...] = ()
    """Paths that are as in the base again."""


class AgentRestarted(msgspec.Struct, frozen=True, kw_only=True, tag="agent_restarted"):
    agent: str
    record: RestartRecord


class AgentNoted(msgspec.Struct, frozen=True, kw_only=True, tag="agent_noted"):
    agent: str
    record: NoteRecord


Event = (
    SessionStarted
    | SessionResumed
    | BudgetChanged
    | SessionStopped
    | SessionFinished
    | AgentCreated
    | AssignmentQueued
    | AssignmentRequeued
    | AssignmentClaimed
    | AttemptStarted
    | AttemptEnded
    | VerdictGiven
    | MergeIntended
    | Merged
    | MergeRefused
    | RetryScheduled
    | AssignmentDone
    | DeadLettered
    | ModelStarted
    | ModelAnswered
    | ModelFailed
    | ToolStarted
    | ToolFinished
    | AgentRestarted
    | AgentNoted
)


class Entry(msgspec.Struct, frozen=True):
    """One line of the journal."""

    seq: int
    """From 1, without a gap."""
    at: int
    """When it was written, in milliseconds since 1970. Nothing is decided by it."""
    event: Event
