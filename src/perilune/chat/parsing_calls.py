"""Which tool a call means, by the header that the model wrote before its arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from perilune.chat.messages import Tool


def call_name(header: str, tools: Sequence[Tool]) -> str | None:
    """The tool named by a call's header; None when it names none and `tools` leaves a choice.

    Headers seen: `functions.NAME:3`, `NAME:3`, `functions.NAME3`, `functionsNAME3`, `3`, `call00003`, with
    blanks inside."""
    header = "".join(header.split())
    declared = {tool.name for tool in tools}
    if found := re.fullmatch(r"(?:functions\.)?(.+):[0-9]+", header):
        return found[1]
    bare = re.sub(r"^functions\.?", "", header)
    for name in (header, bare, *_without_digits(bare)):
        if name in declared:
            return name
    if tools and re.fullmatch(r"(?:call[_-]?)?[0-9]*", bare):
        return tools[0].name if len(tools) == 1 else None
    return bare or header or "unknown"


def _without_digits(name: str) -> Iterable[str]:
    """The name with one, two, ... of its last digits removed."""
    while name and name[-1].isdigit():
        name = name[:-1]
        yield name


def tool_by_arguments(arguments: str, tools: Sequence[Tool]) -> str:
    """The tool whose parameters fit the arguments best; the first declared among equals."""
    try:
        given = set(msgspec.json.decode(arguments or "{}", type=dict[str, msgspec.Raw]))
    except (msgspec.DecodeError, RecursionError):
        given = set()

    def fit(tool: Tool) -> tuple[int, int]:
        """Arguments that the tool knows, then required ones that are missing (fewer is better)."""
        properties = tool.parameters.get("properties") or {}
        required = tool.parameters.get("required") or ()
        return len(given & set(properties)), -len(set(required) - given)

    return max(tools, key=fit).name
