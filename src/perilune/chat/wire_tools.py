"""The tools of a chat call, and which of them it demands, as K2 may be shown them."""

from __future__ import annotations

import re

import msgspec

from perilune.chat.messages import Tool
from perilune.chat.web_search import TOOL, WEB_SEARCH
from perilune.chat.wire_fields import ChoiceField, ToolField
from perilune.chat.wire_nesting import refuse_deep
from perilune.errors import InputError, UnsupportedInput

MAX_TOOLS = 128
TOOL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_-]{0,63}")
THINKING_OFF = 'send "thinking": {"type": "disabled"} with it'


def tools_of(fields: list[ToolField]) -> tuple[Tool, ...]:
    """Raises InputError naming the tool, UnsupportedInput for a type of tool that is not served."""
    if len(fields) > MAX_TOOLS:
        raise InputError(f"more than {MAX_TOOLS} tools", field="tools", mend="send fewer")
    tools = tuple(_tool(field, f"tools[{place}]") for place, field in enumerate(fields))
    names = [tool.name for tool in tools]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InputError(
                f"the name {name!r} occurs twice", field=f"tools[{place}].function.name", mend="rename one"
            )
    return tools


def _tool(field: ToolField, where: str) -> Tool:
    if field.type == "builtin_function":
        return _builtin(field, where)
    if field.type != "function":
        raise UnsupportedInput(
            f"tools of type {field.type!r} are not served", field=f"{where}.type", mend="use type function"
        )
    function = field.function
    if function is None:
        raise InputError("is required", field=f"{where}.function", mend="add it")
    if not TOOL_NAME.fullmatch(function.name):
        raise InputError(
            "Invalid request: function name is invalid, must start with a letter and can contain letters, "
            "numbers, underscores, and dashes",
            field=f"{where}.function.name",
            mend="use at most 64 of them",
        )
    parameters = function.parameters or {}
    if parameters.get("type", "object") != "object":
        raise InputError(
            "must be a schema of type object",
            field=f"{where}.function.parameters.type",
            mend="wrap the arguments in an object",
        )
    refuse_deep(parameters, f"{where}.function.parameters")
    return Tool(
        name=function.name,
        description=function.description or "",
        parameters=parameters,
        strict=function.strict is not False,
    )


def _builtin(field: ToolField, where: str) -> Tool:
    """A tool of the server's own. Only its name is the client's to say."""
    if field.function is None or field.function.name != WEB_SEARCH:
        raise InputError(
            f"the only builtin function is {WEB_SEARCH}", field=f"{where}.function.name", mend="name that"
        )
    return msgspec.structs.replace(TOOL, name=WEB_SEARCH)


def tool_choice_of(choice: str | ChoiceField | None, tools: tuple[Tool, ...], thinking: bool) -> str:
    """As `Request.tool_choice` spells it. Raises InputError."""
    if choice is None or choice in ("auto", "none"):
        return choice if isinstance(choice, str) else "auto"
    if isinstance(choice, str) and choice != "required":
        raise InputError(
            f"unknown choice {choice!r}",
            field="tool_choice",
            mend="send auto, none, required, or an object that names a function",
        )
    if not tools:
        raise InputError("demands a call, but there are no tools", field="tool_choice", mend="send tools")
    if thinking:
        kind = choice if isinstance(choice, str) else "specified"
        raise InputError(
            f"tool_choice '{kind}' is incompatible with thinking enabled",
            field="tool_choice",
            mend=THINKING_OFF,
        )
    if isinstance(choice, str):
        return choice
    name = choice.function.name
    if name not in {tool.name for tool in tools}:
        raise InputError(
            f"no tool is called {name!r}", field="tool_choice.function.name", mend="name one of tools"
        )
    return f"tool:{name}"
