"""What the parts of a running session share."""

from __future__ import annotations

from dataclasses import dataclass

from perilune.agent.sandbox import ProcessLimits, Sandbox
from perilune.swarm.admission import Admission
from perilune.swarm.bases import Bases
from perilune.swarm.events import SessionStarted
from perilune.swarm.halt import Halt
from perilune.swarm.merge import Merger
from perilune.swarm.model_calls import ModelCalls
from perilune.swarm.recorder import Recorder
from perilune.swarm.repository import Repository
from perilune.swarm.state import SessionState
from perilune.swarm.verify import CommandVerifier, RenameVerifier, Verifier, VerifierChain, parse_rename_goal


@dataclass(frozen=True)
class Run:
    recorder: Recorder
    halt: Halt
    calls: ModelCalls
    admission: Admission
    bases: Bases
    repository: Repository
    merger: Merger
    sandbox: Sandbox

    @property
    def state(self) -> SessionState:
        return self.recorder.state

    @property
    def session(self) -> SessionStarted:
        return self.recorder.state.session

    async def verifier(self, base: str) -> Verifier:
        """What judges changes over this base: the goal's own rule, then the user's command."""
        session, chain = self.session, list[Verifier]()
        if session.files:
            chain.append(RenameVerifier(parse_rename_goal(session.goal)))
        if session.check:
            limits = session.subagent.limits
            chain.append(
                CommandVerifier(
                    session.check,
                    self.sandbox,
                    await self.bases.workspaces(base),
                    ProcessLimits(
                        seconds=limits.command_seconds,
                        memory_mb=limits.memory_mb,
                        processes=limits.processes,
                    ),
                )
            )
        return VerifierChain(chain)


def plain(text: str) -> str:
    """The text as UTF-8 can hold it: half a surrogate pair, which JSON from a model may bring, becomes ?."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
