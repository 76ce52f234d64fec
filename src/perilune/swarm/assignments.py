"""One assignment from its first attempt to its end, as the state says what is missing.

    waiting -> working -> ended -> accepted -> merging -> merged -> done
                  \\________\\___________\\______ rejected -> working (next attempt) | failed (dead letter)

Every arrow is an event that is on disk before the next step builds on it, so whoever takes the assignment
up after a crash goes on at the same place. Files: each call of a tool that may write journals what it left
in the workspace, and an attempt that is taken up again has its workspace made anew from just that. A tool
call that began and has no answer therefore runs again in the tree it began in: its effects are confined to
the workspace, and those of the lost run are gone with it. Files that .gitignore names are not carried over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from perilune.agent.loop import (
    CallModel,
    Done,
    Restart,
    RestartRecord,
    RunTools,
    ToolRecord,
    next_action,
)
from perilune.agent.profiles import Profile
from perilune.agent.tools import REGISTRY, ToolContext, run_tool
from perilune.chat.messages import ToolCall
from perilune.errors import MergeConflict, SandboxError
from perilune.swarm import events
from perilune.swarm.context import Run, plain
from perilune.swarm.state import Assignment
from perilune.swarm.verify import Submission
from perilune.swarm.workspaces import FileChange, OverlayWorkspace

RETRY_TEMPERATURE = 0.5
"""For an agent that answers greedily: again the same question would get the same wrong answer."""


async def run_assignment(run: Run, name: str) -> None:
    """Bring an assignment to its end, in a live place. Raises Halted; StoreError, RepositoryError."""
    async with run.admission.place():
        run.halt.check()
        run.recorder.post(events.AssignmentClaimed(id=name))
        worker = _Worker(run, name)
        try:
            while not worker.one.final:
                await worker.step()
        except SandboxError as error:
            # No verdict on the work, and nothing the model can answer.
            run.halt.set(error)
            run.halt.check()
        await worker.close()


class _Worker:
    def __init__(self, run: Run, name: str) -> None:
        self._run = run
        self._name = name
        self._workspace: OverlayWorkspace | None = None

    @property
    def one(self) -> Assignment:
        return self._run.recorder.state.assignments[self._name]

    async def step(self) -> None:
        match self.one.phase:
            case "waiting":
                await self._first_attempt()
            case "working":
                await self._work()
            case "ended":
                await self._verify()
            case "accepted" | "merging":
                await self._merge()
            case "merged":
                await self._done()
            case _:
                await self._retry_or_bury()

    async def close(self) -> None:
        if self._workspace is not None:
            await asyncio.to_thread(self._workspace.close)
            self._workspace = None

    # ---- attempts

    async def _first_attempt(self) -> None:
        one = self.one
        note = f"An earlier try at this task was not taken: {one.reason}" if one.reason else ""
        self._start(carry=False, base=one.base, note=note)

    async def _retry_or_bury(self) -> None:
        run, one = self._run, self.one
        if one.tries > run.session.retries:
            run.recorder.post(
                events.DeadLettered(
                    id=one.id, attempts=one.attempt + 1, reason=one.reason, answer=_failed(one.reason)
                )
            )
            return
        run.recorder.post(events.RetryScheduled(id=one.id, attempt=one.attempt, reason=one.reason))
        await self.close()
        judged = one.ended is not None and one.ended.status == "succeeded"
        if one.conflict:
            note = f"An earlier try at this task met changes that were merged meanwhile: {one.reason}"
            self._start(carry=False, base=run.recorder.state.tip, note=note)
        elif judged and run.session.subagent.on_rejection == "note":
            note = f"Your changes were not accepted: {one.reason}\nMend that, then finish again."
            self._start(carry=True, base=one.base, note=note)
        else:
            note = f"An earlier try at this task failed: {one.reason}"
            self._start(carry=False, base=one.base, note=note)

    def _start(self, *, carry: bool, base: str, note: str) -> None:
        one, profile = self.one, self._run.session.subagent
        # A profile without notes belongs to a model that was never taught to read them.
        heard = profile.on_rejection == "note"
        greedy = profile.sampling.temperature == 0.0 and one.attempt >= 0
        self._run.recorder.post(
            events.AttemptStarted(
                id=one.id,
                attempt=one.attempt + 1,
                base=base,
                carry=carry,
                note=note if heard else "",
                seed=one.attempt + 1 if greedy else None,
                temperature=RETRY_TEMPERATURE if greedy else None,
            )
        )

    async def _open(self) -> OverlayWorkspace:
        """The attempt's workspace, made from the journalled changes when this process opens it first."""
        if self._workspace is None:
            one = self.one
            workspaces = await self._run.bases.workspaces(one.base)
            workspace = workspaces.open(one.id, one.attempt)
            await workspace.reset(tuple(one.snapshot.values()))
            self._workspace = workspace
        return self._workspace

    # ---- the agent

    async def _work(self) -> None:
        run, one = self._run, self.one
        assert one.agent_state is not None, "an assignment at work has an agent"
        match action := next_action(one.agent_state):
            case CallModel():
                await run.calls.make(one.id, one.agent, action, one.agent_state)
            case RunTools():
                await self._run_tool(action, one.agent_state.profile)
            case Restart():
                run.recorder.post(events.AgentRestarted(agent=one.id, record=RestartRecord(action.reason)))
            case Done():
                run.recorder.post(
                    events.AttemptEnded(
                        id=one.id, attempt=one.attempt, status=action.status, message=plain(action.message)
                    )
                )

    async def _run_tool(self, action: RunTools, profile: Profile) -> None:
        """The first open call; the loop comes back for the others."""
        run, call = self._run, action.calls[0]
        await run.recorder.record(events.ToolStarted(agent=self._name, call_id=call.id, name=call.name))
        workspace = await self._open()
        result = await run_tool(call, ToolContext.of(action, workspace, profile, run.sandbox))
        record = ToolRecord(call.id, plain(result.content), result.ok, result.mutated, result.settled)
        written: tuple[FileChange, ...] = ()
        reverted: tuple[str, ...] = ()
        if result.mutated or _may_write(call):
            written, reverted = _difference(self.one.snapshot, await workspace.changes())
        run.recorder.post(
            events.ToolFinished(agent=self._name, record=record, written=written, reverted=reverted)
        )

    # ---- judging and merging

    async def _verify(self) -> None:
        one = self.one
        submission = Submission(one.id, one.attempt, one.prompt, _changes(one), await self._open())
        verdict = await (await self._run.verifier(one.base)).verify(submission)
        self._run.recorder.post(
            events.VerdictGiven(
                id=one.id, attempt=one.attempt, accepted=verdict.accepted, reason=plain(verdict.reason)
            )
        )

    async def _merge(self) -> None:
        run, one = self._run, self.one
        changes = _changes(one)
        if not changes:
            await self._done()
            return
        if one.merge is None:
            message, when = _commit_message(one, run.session), run.recorder.state.started_at // 1000
            commit = await run.merger.commit(changes, message, when, base=one.base)
            intent = events.MergeIntended(
                id=one.id, attempt=one.attempt, commit=commit, message=message, when=when
            )
            await run.recorder.record(intent)
        else:
            # The object may have been lost with the machine; made again it is the same.
            intent = one.merge
            await run.merger.commit(changes, intent.message, intent.when, base=one.base)
        try:
            merged = await run.merger.merge(intent.commit, intent.message, intent.when)
        except MergeConflict as error:
            run.recorder.post(
                events.MergeRefused(
                    id=one.id, attempt=one.attempt, reason=plain(str(error)), paths=error.paths
                )
            )
            return
        run.recorder.post(
            events.Merged(
                id=one.id,
                attempt=one.attempt,
                commit=intent.commit,
                tip=merged.tip,
                paths=tuple(change.path for change in changes),
            )
        )

    async def _done(self) -> None:
        one = self.one
        assert one.ended is not None, "an accepted assignment has ended"
        answer = one.ended.message
        if not self._run.session.files:
            # The orchestrator of a free goal hears what is true, not only what the agent says.
            answer += f"\n\n[merged: {', '.join(one.paths)}]" if one.paths else "\n\n[no file changed]"
        self._run.recorder.post(events.AssignmentDone(id=one.id, answer=answer))


def _changes(one: Assignment) -> tuple[FileChange, ...]:
    return tuple(one.snapshot[path] for path in sorted(one.snapshot))


def _may_write(call: ToolCall) -> bool:
    entry = REGISTRY.get(call.name)
    return entry is not None and entry.mutates


def _difference(
    before: Mapping[str, FileChange], now: tuple[FileChange, ...]
) -> tuple[tuple[FileChange, ...], tuple[str, ...]]:
    """What one call did to the changes: written anew, and as in the base again."""
    # A name that is not UTF-8 has no place in the journal's JSON, and so none in the result.
    kept = [change for change in now if change.path.isascii() or plain(change.path) == change.path]
    written = tuple(change for change in kept if before.get(change.path) != change)
    reverted = tuple(sorted(set(before) - {change.path for change in kept}))
    return written, reverted


def _failed(reason: str) -> str:
    text = reason.strip().rstrip(".")
    return f"{text}." if text.startswith("Failed:") else f"Failed: {text}."


def _commit_message(one: Assignment, session: events.SessionStarted) -> str:
    first = one.prompt.strip().splitlines()[0] if one.prompt.strip() else one.id
    title = first if len(first) <= 72 else f"{first[:71]}…"
    trailers = f"Perilune-Session: {session.id}\nPerilune-Task: {one.id}\n"
    return f"{title}\n\n{session.goal.strip()}\n\n{trailers}"
