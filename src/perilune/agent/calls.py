"""The shape of one tool call: JSON, a known tool, arguments of the declared types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from perilune.agent.profiles import Profile
from perilune.chat.messages import ToolCall

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


class Refusal(msgspec.Struct, frozen=True):
    """Why a call cannot be run; `text` is the tool error that the model can answer."""

    text: str


def check_call(profile: Profile, call: ToolCall) -> Mapping[str, Any] | Refusal:
    """The call's arguments, or why they are not arguments of this tool."""
    tool = profile.tool(call.name)
    if tool is None:
        return Refusal(f"error: no tool {call.name}")
    try:
        arguments = json.loads(call.arguments or "{}", parse_constant=_no_number)
    except (ValueError, RecursionError):
        return Refusal("error: arguments are not JSON")
    if not isinstance(arguments, dict):
        return Refusal("error: arguments are not a JSON object")
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    for name in tool.parameters.get("required", ()):
        if name not in arguments:
            return Refusal(f"error: {name} is missing")
    for name, value in arguments.items():
        if name not in properties:
            return Refusal(f"error: {call.name} takes no argument {name}")
        expected = properties[name].get("type")
        if not _is(value, expected):
            return Refusal(f"error: {name} is not of type {expected}")
        choices = properties[name].get("enum")
        if choices is not None and value not in choices:
            return Refusal(f"error: {name} is none of {', '.join(map(str, choices))}")
    return arguments


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """The arguments of a call that `check_call` accepted."""
    arguments: dict[str, Any] = json.loads(call.arguments or "{}")
    return arguments


def same_call(call: ToolCall) -> str:
    """A text equal for calls that differ only in key order or white space."""
    try:
        arguments = json.dumps(json.loads(call.arguments or "{}"), sort_keys=True)
    except (ValueError, RecursionError):
        arguments = call.arguments
    return f"{call.name} {arguments}"


def _no_number(word: str) -> NoReturn:
    """NaN and the infinities are no JSON, though Python reads them."""
    raise ValueError(word)


def _is(value: object, expected: object) -> bool:
    if not isinstance(expected, str) or expected not in _TYPES:
        return True
    if isinstance(value, bool):
        return expected == "boolean"
    return isinstance(value, _TYPES[expected])
