"""How a session's state follows from its journal. Pure: no clock, no file, no model.

    state = apply(state, entry)     the only way in which it changes, live and at resume

Counters are derived here and written down nowhere. Who runs the session reads the state (`swarm/shape.py`)
to know what is left to do; report and live view read the same state from the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from perilune.agent import loop
from perilune.agent.loop import AgentState
from perilune.swarm import events
from perilune.swarm.events import ORCHESTRATOR, Entry
from perilune.swarm.shape import FINAL, Assignment, Call, Held, Phase, SessionState, Spent

__all__ = ["FINAL", "Assignment", "Call", "Held", "Phase", "SessionState", "Spent", "apply", "fold"]


def fold(entries: Iterable[Entry], state: SessionState | None = None) -> SessionState:
    state = SessionState() if state is None else state
    for entry in entries:
        state = apply(state, entry)
    return state


def apply(state: SessionState, entry: Entry) -> SessionState:
    """The state after this entry. Raises ValueError for an entry that cannot follow: a bug of the runner,
    or a journal that was tampered with."""
    if entry.seq != state.seq + 1:
        raise ValueError(f"entry {entry.seq} after {state.seq}")
    try:
        state = _HANDLERS[type(entry.event)](state, entry.event, entry.at)
    except KeyError as error:
        raise ValueError(f"entry {entry.seq} names {error}, which is not there") from error
    return msgspec.structs.replace(state, seq=entry.seq, updated_at=entry.at)


# ---- the session


def _session_started(state: SessionState, event: events.SessionStarted, at: int) -> SessionState:
    if state.started is not None:
        raise ValueError("session_started twice")
    orchestrator = loop.start(
        event.orchestrator,
        model=event.entry.id,
        prompt=event.goal,
        cache_salt=event.cache_salt,
        prompt_cache_key=event.id,
    )
    return msgspec.structs.replace(
        state,
        started=event,
        status="running",
        tip=event.base,
        budget=event.budget,
        orchestrator=orchestrator,
        started_at=at,
    )


def _session_resumed(state: SessionState, event: events.SessionResumed, at: int) -> SessionState:
    state = _let_go(state)
    return msgspec.structs.replace(
        state, status="running", message="", stop_reason="", suspended="", resumes=state.resumes + 1
    )


def _let_go(state: SessionState) -> SessionState:
    """Nobody works on the session any more: claims go back, and calls without an end are accounted for.

    Where the model runs in this process, an unfinished answer is lost and costs nothing. Elsewhere it may
    have been charged, so its whole reservation counts as spent; it fitted the budget when it was made."""
    calls = state.calls
    for agent, call in calls.items():
        if call.billable:
            state = _add_lost(state, agent, call.held)
    free = {
        one.id: msgspec.structs.replace(one, claimed=False, suspended="") if one.claimed else one
        for one in state.assignments.values()
    }
    return msgspec.structs.replace(
        state, assignments=free, lost_calls=state.lost_calls + len(calls), calls={}, reserved=Held()
    )


def _budget_changed(state: SessionState, event: events.BudgetChanged, at: int) -> SessionState:
    return msgspec.structs.replace(state, budget=event.budget)


def _session_stopped(state: SessionState, event: events.SessionStopped, at: int) -> SessionState:
    return msgspec.structs.replace(
        _let_go(state), status="stopped", stop_reason=event.reason, message=event.message
    )


def _session_finished(state: SessionState, event: events.SessionFinished, at: int) -> SessionState:
    return msgspec.structs.replace(state, status=event.status, message=event.message, tip=event.tip)


# ---- assignments


def _agent_created(state: SessionState, event: events.AgentCreated, at: int) -> SessionState:
    return msgspec.structs.replace(state, agents={**state.agents, event.name: event.system_prompt})


def _queued(state: SessionState, event: events.AssignmentQueued, at: int) -> SessionState:
    if event.id in state.assignments or event.key in state.by_key:
        raise ValueError(f"assignment {event.id} queued twice")
    one = Assignment(
        id=event.id,
        key=event.key,
        agent=event.agent,
        prompt=event.prompt,
        stage=event.stage,
        base=event.base,
        queued_at=at,
    )
    return msgspec.structs.replace(
        state,
        assignments={**state.assignments, one.id: one},
        by_key={**state.by_key, one.key: one.id},
    )


def _requeued(state: SessionState, event: events.AssignmentRequeued, at: int) -> SessionState:
    one = state.assignments[event.id]
    if one.phase != "failed":
        raise ValueError(f"assignment {event.id} requeued while {one.phase}")
    return _with(
        state,
        one,
        phase="waiting",
        stage=event.stage,
        base=event.base,
        handed_out=one.handed_out + 1,
        tries=0,
        stage_steps=0,
        answer="",
        finished_at=None,
    )


def _claimed(state: SessionState, event: events.AssignmentClaimed, at: int) -> SessionState:
    one = state.assignments[event.id]
    if one.claimed or one.final:
        raise ValueError(f"assignment {event.id} claimed twice")
    return _with(state, one, claimed=True, started_at=at if one.started_at is None else one.started_at)


def _attempt_started(state: SessionState, event: events.AttemptStarted, at: int) -> SessionState:
    one, session = state.assignments[event.id], state.session
    if one.phase not in ("waiting", "rejected") or event.attempt != one.attempt + 1:
        raise ValueError(f"attempt {event.attempt} of {event.id} while {one.phase}")
    agent = one.agent_state if event.carry else None
    if agent is None:
        profile = session.subagent
        if event.temperature is not None:
            sampling = msgspec.structs.replace(profile.sampling, temperature=event.temperature)
            profile = msgspec.structs.replace(profile, sampling=sampling)
        agent = loop.start(
            profile,
            model=session.entry.id,
            prompt=one.prompt,
            system_prompt=state.agents[one.agent],
            cache_salt=session.cache_salt,
            prompt_cache_key=session.id,
            seed=event.seed,
        )
    if event.note:
        agent = loop.apply(agent, loop.NoteRecord(event.note))
    if one.phase == "rejected":
        state = msgspec.structs.replace(state, retries=state.retries + 1)
    return _with(
        state,
        one,
        phase="working",
        attempt=event.attempt,
        tries=one.tries + 1,
        base=event.base,
        agent_state=agent,
        snapshot=one.snapshot if event.carry else {},
        ended=None,
        merge=None,
        conflict=False,
    )


def _attempt_ended(state: SessionState, event: events.AttemptEnded, at: int) -> SessionState:
    one = _expect(state, event.id, "working")
    if event.status == "failed":
        return _with(state, one, phase="rejected", ended=event, reason=event.message)
    return _with(state, one, phase="ended", ended=event)


def _verdict_given(state: SessionState, event: events.VerdictGiven, at: int) -> SessionState:
    one = _expect(state, event.id, "ended")
    phase: Phase = "accepted" if event.accepted else "rejected"
    return _with(state, one, phase=phase, reason="" if event.accepted else event.reason)


def _merge_intended(state: SessionState, event: events.MergeIntended, at: int) -> SessionState:
    return _with(state, _expect(state, event.id, "accepted"), phase="merging", merge=event)


def _merged(state: SessionState, event: events.Merged, at: int) -> SessionState:
    one = _expect(state, event.id, "merging")
    state = _with(state, one, phase="merged", paths=event.paths, merge=None)
    return msgspec.structs.replace(state, tip=event.tip, merges=state.merges + 1)


def _merge_refused(state: SessionState, event: events.MergeRefused, at: int) -> SessionState:
    one = _expect(state, event.id, "merging")
    return _with(state, one, phase="rejected", merge=None, conflict=True, reason=event.reason)


def _retry_scheduled(state: SessionState, event: events.RetryScheduled, at: int) -> SessionState:
    _expect(state, event.id, "rejected")
    return state  # the attempt that follows is what counts


def _assignment_done(state: SessionState, event: events.AssignmentDone, at: int) -> SessionState:
    one = state.assignments[event.id]
    if one.phase != "merged":
        _expect(state, event.id, "accepted")  # accepted as it is: there was nothing to merge
    return _final(state, one, at, phase="done", answer=event.answer, reason="")


def _dead_lettered(state: SessionState, event: events.DeadLettered, at: int) -> SessionState:
    one = _expect(state, event.id, "rejected")
    return _final(state, one, at, phase="failed", answer=event.answer, reason=event.reason)


# ---- agents


def _model_started(state: SessionState, event: events.ModelStarted, at: int) -> SessionState:
    if event.agent in state.calls:
        raise ValueError(f"{event.agent} calls the model twice at once")
    held = Held(steps=1, tokens=event.tokens, nano_usd=event.nano_usd)
    state = _with_suspended(state, event.agent, "")
    return msgspec.structs.replace(
        state,
        calls={**state.calls, event.agent: Call(held, event.billable, at)},
        reserved=state.reserved.plus(held),
    )


def _model_answered(state: SessionState, event: events.ModelAnswered, at: int) -> SessionState:
    usage = event.record.completion.usage
    state = _released(state, event.agent)
    state = _add_spent(state, event.agent, lambda spent: spent.with_usage(usage, event.nano_usd))
    state = _with_agent(state, event.agent, loop.apply(_agent(state, event.agent), event.record))
    if event.agent == ORCHESTRATOR:
        return state
    one = state.assignments[event.agent]
    one = msgspec.structs.replace(one, steps=one.steps + 1, stage_steps=one.stage_steps + 1)
    longest = {**state.longest, one.stage: max(state.longest.get(one.stage, 0), one.stage_steps)}
    return msgspec.structs.replace(state, assignments={**state.assignments, one.id: one}, longest=longest)


def _model_failed(state: SessionState, event: events.ModelFailed, at: int) -> SessionState:
    call = state.calls[event.agent]
    state = _released(state, event.agent)
    if event.charged:
        state = _add_lost(state, event.agent, call.held)
    state = _with_suspended(state, event.agent, event.message if event.retry_ms is not None else "")
    return msgspec.structs.replace(state, failed_calls=state.failed_calls + 1)


def _tool_started(state: SessionState, event: events.ToolStarted, at: int) -> SessionState:
    if event.agent == ORCHESTRATOR:
        return state
    return _with(state, state.assignments[event.agent], open_call=event.call_id)


def _tool_finished(state: SessionState, event: events.ToolFinished, at: int) -> SessionState:
    agent = loop.apply(_agent(state, event.agent), event.record)
    state = msgspec.structs.replace(state, tool_calls=state.tool_calls + 1)
    if event.agent == ORCHESTRATOR:
        return msgspec.structs.replace(state, orchestrator=agent)
    one = state.assignments[event.agent]
    snapshot = one.snapshot
    if event.written or event.reverted:
        snapshot = {path: change for path, change in snapshot.items() if path not in event.reverted}
        snapshot |= {change.path: change for change in event.written}
    edits = one.edits + int(event.record.ok and event.record.mutated)
    return _with(state, one, agent_state=agent, snapshot=snapshot, open_call=None, edits=edits)


def _agent_recorded(
    state: SessionState, event: events.AgentRestarted | events.AgentNoted, at: int
) -> SessionState:
    return _with_agent(state, event.agent, loop.apply(_agent(state, event.agent), event.record))


_HANDLERS: Mapping[type, Callable[[SessionState, Any, int], SessionState]] = {
    events.SessionStarted: _session_started,
    events.SessionResumed: _session_resumed,
    events.BudgetChanged: _budget_changed,
    events.SessionStopped: _session_stopped,
    events.SessionFinished: _session_finished,
    events.AgentCreated: _agent_created,
    events.AssignmentQueued: _queued,
    events.AssignmentRequeued: _requeued,
    events.AssignmentClaimed: _claimed,
    events.AttemptStarted: _attempt_started,
    events.AttemptEnded: _attempt_ended,
    events.VerdictGiven: _verdict_given,
    events.MergeIntended: _merge_intended,
    events.Merged: _merged,
    events.MergeRefused: _merge_refused,
    events.RetryScheduled: _retry_scheduled,
    events.AssignmentDone: _assignment_done,
    events.DeadLettered: _dead_lettered,
    events.ModelStarted: _model_started,
    events.ModelAnswered: _model_answered,
    events.ModelFailed: _model_failed,
    events.ToolStarted: _tool_started,
    events.ToolFinished: _tool_finished,
    events.AgentRestarted: _agent_recorded,
    events.AgentNoted: _agent_recorded,
}


# ---- small changes


def _expect(state: SessionState, assignment: str, phase: Phase) -> Assignment:
    one = state.assignments[assignment]
    if one.phase != phase:
        raise ValueError(f"assignment {assignment} is {one.phase}, not {phase}")
    return one


def _with(state: SessionState, one: Assignment, **changes: Any) -> SessionState:
    changed = msgspec.structs.replace(one, **changes)
    return msgspec.structs.replace(state, assignments={**state.assignments, one.id: changed})


def _final(state: SessionState, one: Assignment, at: int, **changes: Any) -> SessionState:
    """Drops what only a live assignment needs, so 300 finished ones cost little memory."""
    return _with(
        state,
        one,
        claimed=False,
        agent_state=None,
        snapshot={},
        ended=None,
        finished_at=at,
        suspended="",
        **changes,
    )


def _agent(state: SessionState, agent: str) -> AgentState:
    found = state.orchestrator if agent == ORCHESTRATOR else state.assignments[agent].agent_state
    if found is None:
        raise ValueError(f"{agent} is not at work")
    return found


def _with_agent(state: SessionState, agent: str, agent_state: AgentState) -> SessionState:
    if agent == ORCHESTRATOR:
        return msgspec.structs.replace(state, orchestrator=agent_state)
    return _with(state, state.assignments[agent], agent_state=agent_state)


def _with_suspended(state: SessionState, agent: str, why: str) -> SessionState:
    if agent == ORCHESTRATOR:
        return msgspec.structs.replace(state, suspended=why)
    one = state.assignments[agent]
    return state if one.suspended == why else _with(state, one, suspended=why)


def _add_lost(state: SessionState, agent: str, held: Held) -> SessionState:
    return _add_spent(state, agent, lambda spent: spent.with_lost(held))


def _add_spent(state: SessionState, agent: str, add: Callable[[Spent], Spent]) -> SessionState:
    """To the session and to the agent, so that the parts always sum to the whole."""
    state = msgspec.structs.replace(state, spent=add(state.spent))
    if agent == ORCHESTRATOR:
        return msgspec.structs.replace(state, orchestrator_spent=add(state.orchestrator_spent))
    one = state.assignments[agent]
    return _with(state, one, spent=add(one.spent))


def _released(state: SessionState, agent: str) -> SessionState:
    call = state.calls[agent]
    calls = {name: other for name, other in state.calls.items() if name != agent}
    return msgspec.structs.replace(state, calls=calls, reserved=state.reserved.plus(call.held, -1))
