"""What a session's state is made of. How it changes is in `swarm/state.py`; nothing here changes anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from perilune.agent.loop import AgentState
from perilune.chat.messages import Usage
from perilune.swarm import events
from perilune.swarm.events import Budget
from perilune.swarm.workspaces import FileChange

Phase = Literal["waiting", "working", "ended", "accepted", "merging", "merged", "rejected", "done", "failed"]
"""What an assignment needs next: an attempt, its agent's next step, a verdict, a merge, the merge's end, to
be called done, the decision about a retry; or nothing any more."""
FINAL: frozenset[Phase] = frozenset({"done", "failed"})


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What model calls came to."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    lost_tokens: int = 0
    """Reserved for calls whose end nobody heard, and counted as used because they may have been charged."""
    nano_usd: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens + self.lost_tokens

    def with_usage(self, usage: Usage, nano_usd: int) -> Spent:
        return Spent(
            steps=self.steps + 1,
            prompt_tokens=self.prompt_tokens + usage.prompt_tokens,
            cached_tokens=self.cached_tokens + usage.cached_tokens,
            completion_tokens=self.completion_tokens + usage.completion_tokens,
            reasoning_tokens=self.reasoning_tokens + usage.reasoning_tokens,
            lost_tokens=self.lost_tokens,
            nano_usd=self.nano_usd + nano_usd,
        )

    def with_lost(self, held: Held) -> Spent:
        return msgspec.structs.replace(
            self,
            steps=self.steps + held.steps,
            lost_tokens=self.lost_tokens + held.tokens,
            nano_usd=self.nano_usd + held.nano_usd,
        )


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Budget reserved for model calls under way."""

    steps: int = 0
    tokens: int = 0
    nano_usd: int = 0

    def plus(self, other: Held, sign: int = 1) -> Held:
        return Held(
            steps=self.steps + sign * other.steps,
            tokens=self.tokens + sign * other.tokens,
            nano_usd=self.nano_usd + sign * other.nano_usd,
        )


class Call(msgspec.Struct, frozen=True):
    """A model call under way."""

    held: Held
    billable: bool
    since: int


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """One task of one sub-agent, over all its attempts."""

    id: str
    key: str
    agent: str
    prompt: str
    stage: int
    base: str
    phase: Phase = "waiting"
    claimed: bool = False
    """It has a live place in this process."""
    attempt: int = -1
    """The current attempt; -1 before the first."""
    handed_out: int = 1
    """How often the orchestrator gave it out after all attempts had failed, plus one."""
    tries: int = 0
    """Attempts since it was handed out last."""
    agent_state: AgentState | None = None
    """The agent of the current attempt; dropped when the assignment is final."""
    snapshot: Mapping[str, FileChange] = msgspec.field(default_factory=dict)
    """The attempt's changes so far, by path; dropped when final."""
    open_call: str | None = None
    """A tool call that began and has no answer."""
    ended: events.AttemptEnded | None = None
    merge: events.MergeIntended | None = None
    conflict: bool = False
    """The last attempt was accepted, but met what others had merged meanwhile."""
    reason: str = ""
    """Why the last attempt was not taken, or why the assignment failed."""
    answer: str = ""
    paths: tuple[str, ...] = ()
    """What was merged."""
    steps: int = 0
    stage_steps: int = 0
    """Steps since it was handed out last, for the critical path."""
    edits: int = 0
    suspended: str = ""
    """Why its agent waits to call the model again; empty when it does not."""
    spent: Spent = Spent()
    queued_at: int = 0
    started_at: int | None = None
    finished_at: int | None = None

    @property
    def final(self) -> bool:
        return self.phase in FINAL

    @property
    def status(self) -> Literal["queued", "working", "suspended", "verifying", "merging", "done", "failed"]:
        """What a person is shown."""
        if self.phase == "done" or self.phase == "failed":
            return self.phase
        if not self.claimed:
            return "queued"
        if self.phase in ("ended", "rejected"):
            return "verifying"
        if self.phase in ("accepted", "merging", "merged"):
            return "merging"
        return "suspended" if self.suspended else "working"


class SessionState(msgspec.Struct, frozen=True, kw_only=True):
    seq: int = 0
    """The last entry in it."""
    started: events.SessionStarted | None = None
    status: Literal["new", "running", "stopped", "complete", "incomplete"] = "new"
    message: str = ""
    """Why it stopped, or the orchestrator's last sentence."""
    stop_reason: str = ""
    tip: str = ""
    budget: Budget = Budget()
    orchestrator: AgentState | None = None
    agents: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Instructions of the kinds of sub-agents, by name."""
    assignments: Mapping[str, Assignment] = msgspec.field(default_factory=dict)
    """By id, in the order in which they were queued."""
    by_key: Mapping[str, str] = msgspec.field(default_factory=dict)
    spent: Spent = Spent()
    orchestrator_spent: Spent = Spent()
    reserved: Held = Held()
    calls: Mapping[str, Call] = msgspec.field(default_factory=dict)
    """Model calls under way, by agent."""
    longest: Mapping[int, int] = msgspec.field(default_factory=dict)
    """Per stage the steps of its longest sub-agent."""
    suspended: str = ""
    """Why the orchestrator waits to call the model again."""
    failed_calls: int = 0
    lost_calls: int = 0
    tool_calls: int = 0
    retries: int = 0
    merges: int = 0
    resumes: int = 0
    started_at: int = 0
    updated_at: int = 0

    @property
    def session(self) -> events.SessionStarted:
        """What was started. Only for a state that has seen its first entry."""
        assert self.started is not None, "a journal begins with session_started"
        return self.started

    @property
    def critical_steps(self) -> int:
        """The orchestrator's steps plus, stage by stage, those of the longest sub-agent."""
        return self.orchestrator_spent.steps + sum(self.longest.values())

    @property
    def finished(self) -> bool:
        return self.status in ("complete", "incomplete")

    @property
    def queue(self) -> tuple[Assignment, ...]:
        """Assignments that wait for a live place, in order."""
        return tuple(one for one in self.assignments.values() if not one.claimed and not one.final)

    def count(self, *statuses: str) -> int:
        """How many assignments have one of these statuses (`Assignment.status`)."""
        return sum(one.status in statuses for one in self.assignments.values())

    @property
    def not_done(self) -> tuple[str, ...]:
        """What is listed as not done: for a rename the files without an accepted result, else the prompts
        of assignments that are not done."""
        if self.session.files:
            done = {one.key for one in self.assignments.values() if one.phase == "done"}
            return tuple(path for path in self.session.files if path not in done)
        return tuple(one.prompt for one in self.assignments.values() if one.phase != "done")
