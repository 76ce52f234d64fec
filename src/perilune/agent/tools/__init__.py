"""The tools that an agent runs in its workspace, and the one door to them.

`create_subagent`, `assign_task`, `list_files` and `status` are not here: the swarm answers them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from perilune.agent.calls import Refusal, check_call
from perilune.agent.tools import files, rename, shell
from perilune.agent.tools.context import ToolContext, ToolEntry, ToolResult
from perilune.chat.messages import ToolCall

__all__ = ["REGISTRY", "ToolContext", "ToolEntry", "ToolResult", "run_tool"]

REGISTRY: Mapping[str, ToolEntry] = MappingProxyType(
    {
        "search": ToolEntry(rename.search, mutates=False),
        "replace_word": ToolEntry(rename.replace_word, mutates=True),
        "view": ToolEntry(files.view, mutates=False),
        "create": ToolEntry(files.create, mutates=True),
        "replace": ToolEntry(files.replace, mutates=True),
        "grep": ToolEntry(files.grep, mutates=False),
        "bash": ToolEntry(shell.bash, mutates=True),
        "submit": ToolEntry(shell.submit, mutates=False),
    }
)


async def run_tool(call: ToolCall, context: ToolContext) -> ToolResult:
    """Run one call. A failure the model can answer is a result with `ok=False`; SandboxError (a command
    cannot be isolated) is raised, for no answer of the model would mend it."""
    arguments = check_call(context.profile, call)
    if isinstance(arguments, Refusal):
        return ToolResult(arguments.text, ok=False)
    entry = REGISTRY.get(call.name)
    if entry is None:
        return ToolResult(f"error: {call.name} is not available to this agent", ok=False)
    return await entry.run(arguments, context)
