"""One model call of one agent: reserve, call, settle; wait and try again where that can help.

An endpoint that is busy, away or cut off suspends the agent, not the session: the same call is made again
after a growing pause, which never counts as a step. Pauses are bounded; after the last one, or at once for
what no waiting mends (a refused key, a used-up one, a refused request), the session halts and can be resumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from perilune.agent.loop import AgentState, AnswerRecord, CallModel, RestartRecord
from perilune.backends.base import Backend, complete
from perilune.chat.messages import Completion, Request
from perilune.errors import (
    AccountError,
    BackendAuth,
    BackendError,
    BackendInterrupted,
    BackendProtocol,
    BackendRateLimited,
    BackendRefused,
    ContextTooLong,
    EngineGone,
    LimitReached,
    PeriluneError,
)
from perilune.swarm.admission import FirstCalls
from perilune.swarm.budgets import IN_PROCESS, Purse
from perilune.swarm.events import AgentRestarted, ModelAnswered, ModelFailed
from perilune.swarm.halt import Halt, Halted
from perilune.swarm.recorder import Recorder


@dataclass(frozen=True)
class Patience:
    """How long a call that failed is tried again."""

    first_s: float = 1.0
    longest_s: float = 60.0
    tries: int = 8

    def pause(self, failed: int, error: PeriluneError) -> float | None:
        """Seconds to wait after this many failures: longer each time, and as long as the other side asks.
        None when the patience is at its end."""
        if failed >= self.tries:
            return None
        grown: float = min(self.first_s * 2 ** (failed - 1), self.longest_s)
        asked = error.retry_after_s if isinstance(error, BackendRateLimited | LimitReached) else None
        return grown if asked is None else min(max(asked, grown), self.longest_s)


class ModelCalls:
    """All model calls of one session go through here."""

    def __init__(
        self,
        backend: Backend,
        recorder: Recorder,
        purse: Purse,
        halt: Halt,
        patience: Patience,
        backend_kind: str,
    ) -> None:
        self._backend = backend
        self._recorder = recorder
        self._purse = purse
        self._halt = halt
        self._patience = patience
        self._remote = backend_kind not in IN_PROCESS
        self._first = FirstCalls()

    async def make(self, agent: str, kind: str, action: CallModel, state: AgentState) -> None:
        """Ask the model until there is an answer, and write it down. `kind` names agents that share the
        beginning of their prompts. Raises Halted; StoreError from the journal."""
        failed = 0
        while True:
            # Reserved only when it is this agent's turn: a kill must not charge for calls that waited.
            async with self._first.turn(kind):
                await self._purse.reserve(agent, action.request, state)
                answer = await self._ask(action.request)
            if isinstance(answer, Completion):
                charge = self._purse.charge(answer.usage)
                self._recorder.post(ModelAnswered(agent=agent, record=AnswerRecord(answer), nano_usd=charge))
                self._purse.settled()
                return
            if isinstance(answer, ContextTooLong):
                self._fail(agent, answer, None)
                record = RestartRecord("the prompt exceeds the model's context")
                self._recorder.post(AgentRestarted(agent=agent, record=record))
                return
            failed += 1
            pause = self._patience.pause(failed, answer) if _may_pass(answer) else None
            self._fail(agent, answer, pause)
            if pause is None:
                self._halt.set(answer)
                raise Halted from answer
            await self._halt.sleep(pause)

    async def _ask(self, request: Request) -> Completion | PeriluneError:
        try:
            return await complete(self._backend, request)
        except PeriluneError as error:
            return error

    def _fail(self, agent: str, error: PeriluneError, pause: float | None) -> None:
        self._recorder.post(
            ModelFailed(
                agent=agent,
                code=error.code,
                message=str(error),
                charged=self._remote and isinstance(error, BackendInterrupted | BackendProtocol | EngineGone),
                retry_ms=None if pause is None else int(pause * 1000),
            )
        )
        self._purse.settled()


def _may_pass(error: PeriluneError) -> bool:
    """Whether the same call may do better later."""
    if isinstance(error, AccountError):
        return error.passing
    if isinstance(error, BackendAuth | BackendRefused):
        return False
    return isinstance(error, BackendError | EngineGone)
