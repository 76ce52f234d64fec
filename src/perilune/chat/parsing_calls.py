"""Which tool a call means, by the header that the model wrote before its arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from perilune.chat.messages import Tool

MOST_DIGITS = 9
"""Of a call's index. A model that writes digits without end must not cost the square of their number."""


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
    """The name with one, two, ... of its last digits removed, as many as an index may have."""
    for count in range(1, MOST_DIGITS + 1):
        if not name[-count:].isdecimal() or count > len(name):
            return
        yield name[:-count]


def is_json(arguments: str) -> bool:
    """Whether the arguments are a whole JSON value."""
    try:
        msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    return True


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
