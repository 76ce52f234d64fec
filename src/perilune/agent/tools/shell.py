"""`bash` in the sandbox, and `submit`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from perilune.agent.sandbox import ProcessLimits
from perilune.agent.tools.context import ToolContext, ToolResult, failed

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")

LONGEST_COMMAND = 100_000
"""In bytes; the kernel takes no single argument above 128 KiB."""


async def bash(arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
    """One fresh shell in the workspace. Raises SandboxError when it cannot be isolated."""
    if context.sandbox is None:
        return failed("this agent has no shell")
    command, limits = str(arguments["command"]), context.limits
    refused = _cannot_run(command)
    if refused is not None:
        return failed(refused)
    seconds = float(min(max(arguments.get("timeout") or limits.command_seconds, 1), limits.command_seconds))
    result = await context.sandbox.run(
        ("bash", "-c", command),
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


def _cannot_run(command: str) -> str | None:
    """Why the kernel would not take this command; None when it would."""
    if "\0" in command:
        return "the command holds a NUL character"
    try:
        size = len(command.encode())
    except UnicodeEncodeError:
        return "the command holds half of a surrogate pair"
    if size > LONGEST_COMMAND:
        return f"the command is longer than {LONGEST_COMMAND} bytes; create a file and run that"
    return None


async def submit(arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
    """Ends the agent: the loop takes `summary` as its final message."""
    del arguments, context
    return ToolResult("ok")
