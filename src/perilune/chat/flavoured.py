"""Moonshot's flavour of JSON schema: what is wrong with a schema, in the hosted API's words.

These are the rules by which the hosted API takes tools and answer formats. Keywords that it does not know
are no flaw: it takes them and enforces nothing. Mending is `chat/flavoured_repair.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from perilune.chat.recursion import endless_references, referred

MAX_BYTES = 120_000
MAX_LEVELS = 30
"""Objects within objects; a reference counts as what it refers to."""
MOST_STEPS = 200
"""From schema to part or target, one after the other."""
MAX_PROPERTIES = 3_000
MAX_CHOICES = 500
MAX_ENUM = 1_000
DEFINITIONS = "#/$defs/"
RESERVED = frozenset({"$defs", "$ref", "anyOf", "required", "additionalProperties"})
"""Names that no property may have."""
ANNOTATIONS = frozenset({"description", "title"})
ROOT_ONLY = frozenset({"$defs", "$id"})
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}

Schema = dict[str, Any]
Path = tuple[str, ...]


class Flaw(Exception):
    """The first thing that is wrong: where, and what."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"At path '{'.'.join(path) or 'root'}': {reason}")


def flaw_of(schema: Schema) -> str | None:
    """What makes a schema no Moonshot-flavoured one, as `At path 'properties.x': REASON`; None if nothing."""
    try:
        if schema:
            _check(schema)
    except Flaw as flaw:
        return str(flaw)
    return None


def is_of_type(value: object, kind: str) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False
    if kind == "integer" and isinstance(value, float) and not value.is_integer():
        return False
    return isinstance(value, TYPES[kind])


def parts_of(schema: Schema, path: Path = ()) -> Iterator[tuple[Schema, Path]]:
    """The schemas directly within this one that the flavour knows, each with its path."""
    for keyword in ("$defs", "properties"):
        held = schema.get(keyword)
        for name, part in held.items() if isinstance(held, dict) else ():
            if isinstance(part, dict):
                yield part, (*path, keyword, name)
    for keyword in ("items", "additionalProperties"):
        if isinstance(part := schema.get(keyword), dict):
            yield part, (*path, keyword)
    choices = schema.get("anyOf")
    for part in choices if isinstance(choices, list) else ():
        if isinstance(part, dict):
            yield part, (*path, "anyOf")


def _check(root: Schema) -> None:
    if len(msgspec.json.encode(root)) > MAX_BYTES:
        raise Flaw((), "schema exceeds maximum allowed size")
    waiting: list[tuple[Schema, Path]] = [(root, ())]
    properties = 0
    while waiting:
        schema, path = waiting.pop()
        _check_types(schema, path)
        _check_parts(schema, path)
        _check_enum(schema, path)
        _check_reference(schema, path, root)
        properties += len(schema.get("properties", ()))
        if properties > MAX_PROPERTIES:
            raise Flaw(path, f"total number of properties keys exceeds maximum limit of {MAX_PROPERTIES}")
        waiting += reversed(list(parts_of(schema, path)))
    if _levels(root) > MAX_LEVELS:
        raise Flaw((), f"schema depth exceeds maximum limit of {MAX_LEVELS}")
    if endless := endless_references(root):
        raise Flaw(endless[0][1], "detected infinite recursion without termination condition")


# ---- one schema


def _check_types(schema: Schema, path: Path) -> None:
    if "type" not in schema:
        if "enum" in schema or (
            schema and "description" in schema and schema.keys() <= ANNOTATIONS | {"default"}
        ):
            raise Flaw(path, "type is not defined")
        return
    for other, where in (("anyOf", "anyOf items"), ("$ref", "the referenced schema")):
        if other in schema:
            reason = f"when using {other}, type should be defined in {where} instead of the parent schema"
            raise Flaw(path, reason)
    kinds = schema["type"]
    if not isinstance(kinds, str | list):
        raise Flaw(path, "type must be string or array of strings")
    listed = [kinds] if isinstance(kinds, str) else kinds
    if not listed:
        raise Flaw(path, "type array cannot be empty")
    for kind in listed:
        if not isinstance(kind, str) or kind not in TYPES:
            raise Flaw(path, f"invalid type: {kind!s:.40}")
    if len(listed) > 1 and "enum" not in schema:
        more = schema.keys() - ANNOTATIONS - {"type"} - (frozenset() if path else ROOT_ONLY)
        if more:
            raise Flaw(path, f"keyword {min(more):.40} is not allowed in combination with multiple types")


def _check_enum(schema: Schema, path: Path) -> None:
    if "enum" not in schema:
        return
    values, where = schema["enum"], (*path, "enum")
    if not isinstance(values, list):
        raise Flaw(where, "enum must be an array")
    if not values:
        raise Flaw(where, "enum array cannot be empty")
    if len(values) > MAX_ENUM:
        raise Flaw(where, f"enum array cannot have more than {MAX_ENUM} items")
    kinds = schema["type"]
    listed = [kinds] if isinstance(kinds, str) else kinds
    if len(listed) > 2 or (len(listed) == 2 and ("null" not in listed or {"array", "object"} & set(listed))):
        raise Flaw(
            path, "an enum of several types may only have null and one of string, integer, number, boolean"
        )
    for value in values:
        if not any(is_of_type(value, kind) for kind in listed):
            raise Flaw(where, f"enum value ({value!s:.40}) does not match any type in [{' '.join(listed)}]")


def _check_parts(schema: Schema, path: Path) -> None:
    """That each keyword holds what it may hold."""
    properties = schema.get("properties", {})
    _expect(properties, dict, (*path, "properties"), "properties must be an object")
    for name, part in properties.items():
        where = (*path, "properties")
        if name in RESERVED:
            raise Flaw(where, f"property name '{name}' is reserved for JSON Schema keywords")
        _expect(part, dict, where, f"property schema for '{name:.40}' must be an object")
    required = schema.get("required", [])
    _expect(required, list, (*path, "required"), "required must be an array")
    for name in required:
        _expect(name, str, (*path, "required"), "items in required array must be strings")
        if name not in properties:
            raise Flaw((*path, "required"), f"required property '{name:.40}' is not defined in properties")
    _expect(schema.get("items", {}), dict, (*path, "items"), "items must be an object")
    _expect(
        schema.get("additionalProperties", {}),
        (dict, bool),
        (*path, "additionalProperties"),
        "additionalProperties must be a boolean or an object",
    )
    for keyword in ("description", "pattern"):
        _expect(schema.get(keyword, ""), str, (*path, keyword), f"{keyword} must be a string")
    _check_choices(schema, path)
    definitions = schema.get("$defs", {})
    _expect(definitions, dict, (*path, "$defs"), "$defs must be an object")
    for name, part in definitions.items():
        _expect(part, dict, (*path, "$defs"), f"$defs schema must be object: {name:.40}")
        if not name or "/" in name:
            raise Flaw((*path, "$defs"), f"$defs property name '{name:.40}' is empty or contains '/'")


def _check_choices(schema: Schema, path: Path) -> None:
    where = (*path, "anyOf")
    choices = schema.get("anyOf", [{}])
    _expect(choices, list, where, "anyOf must be an array")
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise Flaw(where, f"anyOf must have 1-{MAX_CHOICES} items")
    for choice in choices:
        _expect(choice, dict, where, "schema in anyOf must be an object")


def _check_reference(schema: Schema, path: Path, root: Schema) -> None:
    if "$ref" not in schema:
        return
    reference, where = schema["$ref"], (*path, "$ref")
    _expect(reference, str, where, "$ref must be a string")
    if reference != "#" and not reference.startswith(DEFINITIONS):
        raise Flaw(where, f"references must start with {DEFINITIONS}")
    if referred(root, reference) is None:
        raise Flaw(where, f"invalid $ref path: {reference:.80}")


def _expect(value: object, kind: type | tuple[type, ...], path: Path, reason: str) -> None:
    if not isinstance(value, kind):
        raise Flaw(path, reason)


def _levels(root: Schema) -> int:
    """How deep objects lie within objects; what is referred to counts once on the way."""
    known: dict[int, int] = {}

    def below(schema: Schema, steps: int) -> int:
        if steps > MOST_STEPS:
            return MAX_LEVELS + 1
        if id(schema) in known:
            return known[id(schema)]
        known[id(schema)] = deepest = 0  # a reference back to where we are adds nothing
        for part, path in parts_of(schema):
            deepest = max(deepest, below(part, steps + 1) + (path[0] == "properties"))
        if isinstance(reference := schema.get("$ref"), str) and (target := referred(root, reference)):
            deepest = max(deepest, below(target, steps + 1))
        known[id(schema)] = deepest
        return deepest

    return below(root, 0)
