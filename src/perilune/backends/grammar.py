"""What an answer may look like, as a Lark grammar in llguidance's dialect for the engine.

Tool calls name declared tools, count on from the conversation's last call, and hold arguments that fit
their schema, in the schema's order; a bound argument holds one of its choices. The grammar says which bytes
may come, not how they are cut into tokens: `no_forcing` leaves that to the model, which was trained on our
template's cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from perilune.chat.messages import Request, Tool
from perilune.chat.template import call_id
from perilune.chat.tokenizer import (
    CALL_ARGUMENTS,
    CALL_BEGIN,
    CALL_END,
    SECTION_BEGIN,
    SECTION_END,
    Tokenizer,
)
from perilune.errors import InputError

COUNTED_CALLS = 16
"""Calls of one answer whose index the grammar spells; later ones may write any number (the parser counts)."""
BLANKS = r"[ \n\r\t]{1,64}"
"""Between the parts of JSON; bounded, for a model can lose itself in them."""
ONE_BLANK = r"[ ]"
"""The same where arguments are bound: tools for small models are written on one line."""
TEXT = "TEXT: /(?s:.*)/"
TOOL_MARKERS = (SECTION_BEGIN, SECTION_END, CALL_BEGIN, CALL_ARGUMENTS, CALL_END)

Choices = Mapping[str, Mapping[str, Sequence[str]]]


def grammar_of(request: Request, tokenizer: Tokenizer, first_call: int, *, strict: bool = True) -> str | None:
    """The grammar of the answer to `request`, or None when any text will do and calls are excluded.

    `strict=False` asks only for JSON objects as arguments: for schemas that llguidance refuses. Raises
    InputError when the wanted tool does not exist or has nothing to choose from."""
    tools = callable_tools(request)
    schema = request.json_schema
    if not tools and schema is None:
        return None
    if tools and not strict:
        tools = tuple(Tool(name=tool.name, description=tool.description) for tool in tools)
    rules = list(_calls(tools, tokenizer, first_call, request)) if tools else []
    if schema is not None:
        rules.append(_json_rule("answer", schema))
        start = "answer | section" if tools else "answer"
    else:
        rules.append(TEXT)
        start = "TEXT section?"
    if must_call(request):
        start = "section"
    return "\n".join(('%llguidance {"no_forcing": true}', f"start: {start}", *rules)) + "\n"


def must_call(request: Request) -> bool:
    return request.tool_choice not in ("auto", "none")


def callable_tools(request: Request) -> tuple[Tool, ...]:
    """The tools that this answer may call: those allowed whose bound arguments have choices."""
    match request.tool_choice:
        case "none":
            return ()
        case "auto" | "required":
            allowed = request.tools
        case choice:
            allowed = tuple(tool for tool in request.tools if choice == f"tool:{tool.name}")
            if not allowed:
                name = choice.removeprefix("tool:")
                raise InputError(f"no declared tool is called {name}", field="tool_choice")
    usable = tuple(tool for tool in allowed if _usable(tool, request.argument_choices))
    if must_call(request) and not usable:
        raise InputError(
            "no tool can be called here", field="tool_choice", mend="declare a tool, or use auto"
        )
    return usable


def _usable(tool: Tool, choices: Choices) -> bool:
    return all(values for values in choices.get(tool.name, {}).values())


# ---- rules


def _calls(tools: Sequence[Tool], tokenizer: Tokenizer, first_call: int, request: Request) -> Iterator[str]:
    """The rules of `section`: one call, then more up to the limit."""
    begin, end, call, arguments, call_end = (f"<[{tokenizer.special(name)}]>" for name in TOOL_MARKERS)
    limit = request.max_parallel_calls
    counted = COUNTED_CALLS if limit is None else max(1, min(limit, COUNTED_CALLS))

    def one_call(headers: Iterable[str]) -> str:
        choices = (f"{header} {arguments} arguments_{place}" for place, header in enumerate(headers))
        return f"{call} ({' | '.join(choices)}) {call_end}"

    yield f"section: {begin} calls_0 {end}"
    for position in range(counted):
        following = f" calls_{position + 1}?" if position + 1 < counted else _rest(limit, counted)
        headers = [_quoted(call_id(tool.name, first_call + position)) for tool in tools]
        yield f"calls_{position}: {one_call(headers)}{following}"
    if _rest(limit, counted):
        yield f"more: {one_call(_quoted(f'functions.{tool.name}:') + ' INDEX' for tool in tools)}"
        yield "INDEX: /[0-9]{1,6}/"
    for place, tool in enumerate(tools):
        choices = request.argument_choices.get(tool.name, {})
        blanks = ONE_BLANK if choices else BLANKS
        yield _json_rule(f"arguments_{place}", _bound(tool, choices), blanks)


def _rest(limit: int | None, counted: int) -> str:
    """What may follow the last counted call."""
    if limit is None:
        return " more*"
    return f" more{{0,{limit - counted}}}" if limit > counted else ""


def _bound(tool: Tool, choices: Mapping[str, Sequence[str]]) -> Mapping[str, Any]:
    """The tool's schema with each bound argument narrowed to its choices."""
    schema: dict[str, Any] = dict(tool.parameters) if tool.strict else {"type": "object"}
    if choices:
        properties = dict(schema.get("properties") or {})
        properties |= {name: {"enum": list(dict.fromkeys(values))} for name, values in choices.items()}
        schema["properties"] = properties
    return schema


def _json_rule(name: str, schema: Mapping[str, Any], blanks: str = BLANKS) -> str:
    """A rule for JSON of this schema; keywords that llguidance does not know are ignored."""
    options = {"whitespace_pattern": blanks, "lenient": True}
    kind = (
        {}
        if {"type", "anyOf", "oneOf", "allOf", "$ref", "enum", "const"} & schema.keys()
        else {"type": "object"}
    )
    return f"{name}: %json {json.dumps({**schema, **kind, 'x-guidance': options})}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
