"""`bash` in the sandbox, and `submit`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from perilune.agent.sandbox import ProcessLimits
from perilune.agent.tools.context import ToolContext, ToolResult, failed

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")


async def bash(arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
    """One fresh shell in the workspace. Raises SandboxError when it cannot be isolated."""
    if context.sandbox is None:
        return failed("this agent has no shell")
    limits = context.limits
    asked = float(arguments.get("timeout") or limits.command_seconds)
    seconds = min(max(asked, 1.0), limits.command_seconds)
    result = await context.sandbox.run(
        ("bash", "-c", str(arguments["command"])),
        context.workspace.view,
        ProcessLimits(
            seconds=seconds,
            output_bytes=limits.output_characters,
            memory_mb=limits.memory_mb,
            processes=limits.processes,
        ),
    )
    output = _ANSI.sub("", result.output).rstrip("\n")
    ending = f"[stopped after {seconds:g} s]" if result.timed_out else f"[exit code {result.exit_code}]"
    # Any command may have written: only a look at the tree could tell, and nothing here counts on it.
    return ToolResult(
        f"{output}\n{ending}" if output else ending,
        ok=result.exit_code == 0 and not result.timed_out,
        mutated=True,
    )


async def submit(arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
    """Ends the agent: the loop takes `summary` as its final message."""
    del arguments, context
    return ToolResult("ok")
