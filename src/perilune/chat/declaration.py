"""How tools are shown to the model: a TypeScript namespace, or JSON where a schema cannot be written so.

The text is part of what the model was trained on, so every quirk of the published format is kept:
required fields first, each group by name, `integer` as `number`, `additionalProperties: false` as
`[k: string]: never`. A schema outside the format turns the whole declaration into compact JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from perilune.chat.messages import Tool

Schema = Mapping[str, Any] | bool

STEP = "  "
CONSTRAINTS = {
    "string": ("maxLength", "minLength", "pattern"),
    "number": ("maximum", "minimum"),
    "integer": ("maximum", "minimum"),
    "array": ("maxItems", "minItems"),
}
LISTED_TYPES = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "null": "null",
    "object": "{}",
    "array": "Array<any>",
}
"""How a type is written within a list of types."""
ENUM_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
}


def declare(tools: Sequence[Tool]) -> str:
    """The body of the `tool_declare` turn."""
    return declare_typescript(tools) or declare_json(tools)


def declare_typescript(tools: Sequence[Tool]) -> str:
    """The namespace; empty where one of the schemas is outside the format."""
    try:
        declared = "\n".join(_declare_function(_sorted(_function(tool))) for tool in tools)
    except (ValueError, KeyError, TypeError, AttributeError):  # a schema that the format cannot express
        return ""
    return f"# Tools\n\n## functions\nnamespace functions {{\n{declared}\n}}\n"


def declare_json(tools: Sequence[Tool]) -> str:
    """The tools as compact JSON with sorted keys."""
    return json.dumps(plain_tools(tools), ensure_ascii=False, separators=(",", ":"))


def plain_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools as the wire spells them, with sorted keys: what a template is given."""
    return [{"function": _sorted(_function(tool)), "type": "function"} for tool in tools]


def _function(tool: Tool) -> dict[str, Any]:
    described = {"description": tool.description} if tool.description else {}
    return {"name": tool.name, **described, "parameters": tool.parameters}


def _sorted(value: Any) -> Any:
    """The value with the keys of every object in order."""
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value


def _declare_function(function: Mapping[str, Any]) -> str:
    references = _References()
    root = function["parameters"]
    parameters = _object(root, references, "")
    interfaces = []
    if references.met_root:
        parameters = "parameters"
        fields = ",\n".join(_fields(root, references, STEP).values())
        body = f"\n{fields}\n" if fields else ""
        interfaces.append(f"interface parameters {{{body}}}")
    interfaces += [_interface(name, schema, references) for name, schema in references.known()]
    comment = _comment(function.get("description", ""), "")
    return "\n".join(
        part
        for part in (*interfaces, comment, f"type {function['name']} = (_: {parameters}) => any;")
        if part
    )


def _interface(name: str, schema: Mapping[str, Any], references: _References) -> str:
    comment = _comment(schema.get("description", ""), "")
    return f"{comment}\n" * bool(comment) + f"interface {name} {_type(schema, references, '')}"


class _References:
    """Definitions of one function, gathered while its schema is walked."""

    def __init__(self) -> None:
        self._definitions: dict[str, Mapping[str, Any]] = {}
        self.met_root = False

    def add(self, definitions: Mapping[str, Any]) -> None:
        self._definitions.update(definitions.items())

    def known(self) -> list[tuple[str, Mapping[str, Any]]]:
        return list(self._definitions.items())

    def name(self, reference: str) -> str:
        if reference == "#":
            self.met_root = True
            return "parameters"
        name = reference.rsplit("/", 1)[-1]
        if not reference.startswith("#/$defs/") or name not in self._definitions:
            raise ValueError(f"cannot express the reference {reference}")
        return name


# ---- types


def _type(schema: Schema, references: _References, indent: str) -> str:
    """The TypeScript type of a schema. Raises where the format has none."""
    if isinstance(schema, bool):
        return "any" if schema else "null"
    if "$ref" in schema:
        return references.name(schema["$ref"])
    if "anyOf" in schema:
        return " | ".join([_type(choice, references, indent) for choice in schema["anyOf"]])
    if "enum" in schema:
        return _enum(schema)
    if schema == {}:
        return "any"
    kind = schema["type"]
    if isinstance(kind, list):
        return " | ".join([LISTED_TYPES[one] for one in kind])
    if kind == "object":
        return _object(schema, references, indent)
    if kind == "array":
        return _array(schema, references, indent)
    # Whatever else stands there is written as it is; null only where nothing joins it to other types.
    return "number" if kind == "integer" else cast(str, kind)


def _enum(schema: Mapping[str, Any]) -> str:
    values = schema["enum"]
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = _type_beside_null(kind)
    allowed = ENUM_TYPES.get(kind) if kind else None
    if allowed and not all(value is None or isinstance(value, allowed) for value in values):
        raise ValueError(f"an enum value is no {kind}")
    return " | ".join([f'"{value}"' if isinstance(value, str) else str(value) for value in values])


def _type_beside_null(kinds: list[str]) -> str:
    if len(kinds) == 1:
        return kinds[0]
    if len(kinds) != 2 or "null" not in kinds:
        raise ValueError("an enum of several types")
    return kinds[0] if kinds[0] != "null" else kinds[1]


def _array(schema: Mapping[str, Any], references: _References, indent: str) -> str:
    item: Schema = schema.get("items") or True
    inner = indent + STEP
    if doc := _doc(item, inner):
        return f"Array<\n{doc}{inner}{_type(item, references, inner)}\n{indent}>"
    return f"Array<{_type(item, references, indent)}>"


def _object(schema: Mapping[str, Any], references: _References, indent: str) -> str:
    inner = indent + STEP
    references.add(schema.get("$defs") or {})
    others = schema.get("additionalProperties")
    if others is False:
        rest = f"{inner}[k: string]: never"
    elif others is not None:
        rest = f"{inner}[k: string]: {_type(others, references, inner)}"
    else:
        rest = ""
    fields = _fields(schema, references, inner)
    required = set(schema.get("required", ())) if fields else set()
    ordered = [fields[name] for name in sorted(fields, key=lambda name: (name not in required, name))]
    lines = ",\n".join([*ordered, rest] if rest else ordered)
    return f"{{\n{lines}\n{indent}}}" if lines else "{}"


def _fields(schema: Mapping[str, Any], references: _References, indent: str) -> dict[str, str]:
    if "properties" not in schema:
        return {}
    required = set(schema.get("required", ()))
    return {
        name: _field(name, name in required, field, references, indent)
        for name, field in schema["properties"].items()
    }


def _field(name: str, required: bool, schema: Schema, references: _References, indent: str) -> str:
    comments = _doc(schema, indent)
    default = None if isinstance(schema, bool) else schema.get("default")
    if default is not None:
        plain = isinstance(default, int | float)  # booleans too: they are written as Python writes them
        text = repr(default) if plain else json.dumps(default, ensure_ascii=False)
        comments += f"{indent}// Default: {text}\n"
    return f"{comments}{indent}{name}{'' if required else '?'}: {_type(schema, references, indent)}"


# ---- comments


def _comment(text: str, indent: str) -> str:
    """Each line behind `// `; empty lines stay empty; no text gives none."""
    return "\n".join(f"{indent}// {line}" if line else "" for line in text.split("\n")) if text else ""


def _doc(schema: Schema, indent: str) -> str:
    """The comment lines above a field or an array's item, each closed by a newline."""
    if isinstance(schema, bool):
        return ""
    comment = _comment(schema.get("description", ""), indent)
    lines = [comment] if comment else []
    kind = schema.get("type")
    plain = isinstance(kind, str) and not {"$ref", "anyOf", "enum"} & schema.keys()
    keys = CONSTRAINTS.get(kind, ()) if plain and kind else ()
    if constraints := ", ".join(f"{key}: {schema[key]}" for key in keys if key in schema):
        lines.append(f"{indent}// {constraints}")
    return "".join(f"{line}\n" for line in lines)
