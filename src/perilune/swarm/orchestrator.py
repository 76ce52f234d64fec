"""The orchestrator: an agent whose tools are the swarm.

All calls of one answer run at once; each is answered by its id as it ends, and the next step begins when
all are answered. A call that is run again after a crash, or given twice, meets the assignment that is
already there. What the texts say is counted from the state, never from what a model claimed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from perilune.agent.loop import (
    CallModel,
    Done,
    Restart,
    RestartRecord,
    RunTools,
    ToolRecord,
    next_action,
)
from perilune.agent.tools import ToolContext, run_tool
from perilune.agent.workspace import DirectoryWorkspace, PathRefused, clean_folder
from perilune.chat.messages import ToolCall
from perilune.swarm import events
from perilune.swarm.context import Run, plain
from perilune.swarm.events import ORCHESTRATOR
from perilune.swarm.halt import Halted, halting
from perilune.swarm.state import SessionState
from perilune.swarm.team import Team

MOST_HANDED_OUT = 3
"""A free task that failed may be given out so often in all. A file of a rename that failed after its retries
is given up for good."""


class Orchestrator:
    def __init__(self, run: Run, team: Team) -> None:
        self._run = run
        self._team = team

    async def run(self) -> Done:
        """Work until the agent has ended. Raises Halted, StoreError."""
        run = self._run
        while True:
            state = run.state.orchestrator
            assert state is not None, "a started session has an orchestrator"
            match action := next_action(state):
                case CallModel():
                    await run.calls.make(ORCHESTRATOR, ORCHESTRATOR, action, state)
                case RunTools():
                    await self._run_calls(action)
                case Restart():
                    run.recorder.post(
                        events.AgentRestarted(agent=ORCHESTRATOR, record=RestartRecord(action.reason))
                    )
                case Done():
                    return action

    async def _run_calls(self, action: RunTools) -> None:
        run = self._run
        # Here, where no call looks at a checkout.
        await run.bases.keep_only(self._needed)
        run.recorder.post(
            *(events.ToolStarted(agent=ORCHESTRATOR, call_id=c.id, name=c.name) for c in action.calls)
        )
        ended = await asyncio.gather(
            *(self._answer(call, action) for call in action.calls), return_exceptions=True
        )
        errors = [error for error in ended if isinstance(error, BaseException)]
        # One call's trouble does not take the answers of the others; what is no halt is told first.
        errors.sort(key=lambda error: isinstance(error, Halted))
        if errors:
            raise errors[0]

    def _needed(self) -> set[str]:
        """The commits that somebody works over, or will look at."""
        state = self._run.state
        working = (one.base for one in state.assignments.values() if not one.final)
        return {state.tip, state.session.base, *working}

    async def _answer(self, call: ToolCall, action: RunTools) -> None:
        with halting(self._run.halt):
            record = await self._record_of(call, action)
            self._run.recorder.post(events.ToolFinished(agent=ORCHESTRATOR, record=record))

    async def _record_of(self, call: ToolCall, action: RunTools) -> ToolRecord:
        arguments: Mapping[str, Any] = json.loads(call.arguments or "{}")
        match call.name:
            case "create_subagent":
                text = self._create(plain(arguments["name"]), plain(arguments["system_prompt"]))
            case "assign_task":
                return await self._assign(call.id, plain(arguments["agent"]), plain(arguments["prompt"]))
            case "list_files":
                text = await self._list(str(arguments["dir"]), int(arguments["page"]))
            case "status":
                text = status_text(self._run.state)
            case _:
                return await self._look(call, action)
        return ToolRecord(call.id, plain(text), ok=not text.startswith("error:"))

    # ---- the tools

    def _create(self, name: str, system_prompt: str) -> str:
        known = self._run.state.agents.get(name)
        if known is None:
            if not name.strip():
                return "error: name is empty"
            self._run.recorder.post(events.AgentCreated(name=name, system_prompt=system_prompt))
        elif known != system_prompt:
            return f"error: {name} exists with other instructions"
        return "ok"

    async def _assign(self, call_id: str, agent: str, prompt: str) -> ToolRecord:
        state = self._run.state
        refused = _refusal(state, agent, prompt)
        if refused is not None:
            return ToolRecord(call_id, f"error: {refused}", ok=False)
        name = self._assignment(agent, prompt)
        one = self._run.state.assignments[name]
        if not one.final:
            self._team.start(name)
            one = await self._team.end_of(name)
        return ToolRecord(call_id, plain(one.answer), ok=one.phase == "done")

    def _assignment(self, agent: str, prompt: str) -> str:
        """The id of this work: the one it has, or a new one. A failed free task is given out again."""
        state, run = self._run.state, self._run
        session = state.session
        key = prompt if session.files else _key(agent, prompt)
        stage = state.orchestrator_spent.steps
        # Files of a rename need nothing from each other; other work builds on what is merged by now.
        base = session.base if session.files else state.tip
        if key in state.by_key:
            one = state.assignments[state.by_key[key]]
            again = one.phase == "failed" and not session.files and one.handed_out < MOST_HANDED_OUT
            # In the step that handed it out it is the same call, run again after a crash, or given twice.
            if again and one.stage != stage:
                run.recorder.post(events.AssignmentRequeued(id=one.id, stage=stage, base=base))
            return one.id
        name = f"a{len(state.assignments) + 1:04d}"
        run.recorder.post(
            events.AssignmentQueued(id=name, key=key, agent=agent, prompt=prompt, stage=stage, base=base)
        )
        return name

    async def _list(self, folder: str, page: int) -> str:
        state, run = self._run.state, self._run
        try:
            inside = clean_folder(folder)
        except PathRefused as error:
            return f"error: {error}"
        if state.session.files:
            files = tuple(path for path in state.session.files if not inside or path.startswith(f"{inside}/"))
        else:
            files = await run.repository.tracked_files(state.tip, inside)
        if not files:
            return f"error: no directory {folder}"
        return page_text(files, page, state.session.orchestrator.page_size)

    async def _look(self, call: ToolCall, action: RunTools) -> ToolRecord:
        """`view`, `grep`: over what is merged by now; there is nothing it could write to."""
        run = self._run
        workspace = DirectoryWorkspace(await run.bases.checkout(run.state.tip))
        result = await run_tool(call, ToolContext.of(action, workspace, run.session.orchestrator))
        return ToolRecord(call.id, plain(result.content), result.ok)


def _refusal(state: SessionState, agent: str, prompt: str) -> str | None:
    """Why this task cannot be given out; None when it can."""
    if agent not in state.agents:
        return f"no agent {agent}"
    if state.session.files and prompt not in state.session.files:
        return f"no file {prompt}"
    return None if prompt.strip() else "prompt is empty"


def _key(agent: str, prompt: str) -> str:
    return hashlib.sha256(f"{agent}\0{prompt}".encode()).hexdigest()[:32]


def page_text(files: Sequence[str], page: int, size: int) -> str:
    """One page of a listing: paths one a line, then what comes next."""
    pages = -(-len(files) // size)
    if not 1 <= page <= pages:
        return f"error: no page {page}, the last is {pages}"
    shown = files[(page - 1) * size : page * size]
    return "\n".join([*shown, "last page" if page == pages else f"next page: {page + 1}"])


def status_text(state: SessionState) -> str:
    """How the work stands, as the state has it."""
    return _rename_status(state) if state.session.files else _free_status(state)


def _rename_status(state: SessionState) -> str:
    files, left = state.session.files, state.not_done
    head = f"{len(files) - len(left)} of {len(files)} files done"
    if not left:
        return head
    given_up = {one.key for one in state.assignments.values() if one.phase == "failed"}
    shown = [path for path in left if path not in given_up][: state.session.orchestrator.page_size]
    return "\n".join([f"{head}, {len(left)} not done:", *shown])


def _free_status(state: SessionState) -> str:
    tasks = state.assignments.values()
    counts = {kind: state.count(kind) for kind in ("done", "failed")}
    lines = [
        f"{len(tasks)} tasks: {counts['done']} done, {counts['failed']} failed, "
        f"{len(tasks) - sum(counts.values())} open"
    ]
    for one in tasks:
        first = next(iter(one.prompt.strip().splitlines()), "")[:80]
        told = f": {one.reason.splitlines()[0][:200]}" if one.reason and one.phase == "failed" else ""
        lines.append(f"{one.id} {one.agent} {one.status}, {first!r}{told}")
    return "\n".join([*lines, _left(state)])


def _left(state: SessionState) -> str:
    budget, spent = state.budget, state.spent
    parts = [f"{budget.steps - spent.steps} steps"]
    if budget.tokens is not None:
        parts.append(f"{budget.tokens - spent.tokens} tokens")
    if budget.nano_usd is not None:
        parts.append(f"${(budget.nano_usd - spent.nano_usd) / 1e9:.2f}")
    return f"left: {', '.join(parts)}; at most {state.session.agents} agents at once"
