"""What a tool is given and what it gives back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from perilune.agent.binding import Choices
from perilune.agent.loop import RunTools
from perilune.agent.profiles import Limits, Profile
from perilune.agent.sandbox import Sandbox
from perilune.agent.workspace import Workspace
from perilune.chat.messages import ToolCall


@dataclass(frozen=True)
class ToolContext:
    """Everything a tool may touch."""

    workspace: Workspace
    profile: Profile
    sandbox: Sandbox | None = None
    """Needed by `bash` only."""
    choices: Choices | None = None
    """What bound arguments may hold; None means unbound."""
    edits: int = 0
    """Successful edits in this context before this call."""
    earlier: tuple[ToolCall, ...] = ()
    """The calls of this context that succeeded, oldest first."""

    @classmethod
    def of(
        cls, action: RunTools, workspace: Workspace, profile: Profile, sandbox: Sandbox | None = None
    ) -> ToolContext:
        return cls(workspace, profile, sandbox, action.choices, action.edits, action.earlier)

    @property
    def limits(self) -> Limits:
        return self.profile.limits


@dataclass(frozen=True)
class ToolResult:
    content: str
    """What the model reads."""
    ok: bool = True
    mutated: bool = False
    """The workspace changed."""
    settled: bool = False
    """Nothing is left of what this tool works on (see `ToolRecord.settled`)."""


def failed(message: str) -> ToolResult:
    return ToolResult(f"error: {message}", ok=False)


Implementation = Callable[[Mapping[str, Any], ToolContext], Awaitable[ToolResult]]


@dataclass(frozen=True)
class ToolEntry:
    """One tool of the registry."""

    run: Implementation
    mutates: bool
    """It may change the workspace: its calls run one after the other."""
