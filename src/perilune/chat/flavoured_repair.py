"""Mends a schema until it is a Moonshot-flavoured one, losing as little of what it says as can be.

docs/api.md lists the mends. Most keep exactly what the schema allows; where the flavour has no way to say a
thing, the schema is widened, never narrowed, but for types that are plainly meant. A property with a reserved
name stays, for it is the tool's own, and so do counts above the hosted API's limits.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import msgspec

from perilune.chat.flavoured import (
    ANNOTATIONS,
    DEFINITIONS,
    MAX_BYTES,
    ROOT_ONLY,
    TYPES,
    Schema,
    flaw_of,
    is_of_type,
    parts_of,
)
from perilune.chat.recursion import endless_references, referred

SPELLINGS = {
    "str": "string",
    "text": "string",
    "int": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
    "dict": "object",
    "map": "object",
    "list": "array",
    "tuple": "array",
    "none": "null",
}
"""How types are spelt by those who think in a programming language."""
KEYWORDS = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": ("items", "minItems", "maxItems", "uniqueItems", "prefixItems"),
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
}
KEYWORDS["integer"] = KEYWORDS["number"]
SHAPES: dict[str, tuple[type, ...]] = {
    "properties": (dict,),
    "required": (list,),
    "items": (dict,),
    "additionalProperties": (dict, bool),
    "enum": (list,),
    "anyOf": (list,),
    "$ref": (str,),
    "description": (str,),
    "title": (str,),
    "pattern": (str,),
}
"""What a keyword holds; one that holds anything else says nothing."""


ANY = ("string", "number", "boolean", "object", "array", "null")
PLAIN_DATA = frozenset({"enum", "const", "default", "examples"})
"""Keywords whose values are no schemas."""
MOST_MOVED = 16
"""Parts of a schema, referred to where they stand, that become definitions."""


def mended(schema: Schema, *, holds_fields: bool = False) -> Schema:
    """The schema, or another one that is Moonshot-flavoured. `holds_fields`: it is a tool's, and must stay an
    object with properties. Above MAX_BYTES nothing is mended."""
    if flaw_of(schema) is None or len(msgspec.json.encode(schema)) > MAX_BYTES:
        return schema
    root: Schema = _copied(schema)
    _gather_definitions(root)
    _mend_references(root)
    if holds_fields:
        _inline_root(root)
        root.pop("enum", None)
        root["type"] = "object"
    parts = [root]
    for part in parts:
        _mend_shapes(part)
        parts += [inner for inner, _ in parts_of(part)]
    for part in parts:
        _join_choices(part, root, holds_fields=holds_fields and part is root)
    for part in reversed(parts):
        _mend_types(part)
        _mend_required(part)
    for part, _ in endless_references(root):
        part.pop("$ref", None)
        _mend_types(part)
    return root


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


# ---- references


def _gather_definitions(root: Schema) -> None:
    """Definitions of any depth and either name become the root's `$defs`; the outermost of a name counts."""
    gathered: Schema = {}
    waiting = [root]
    for schema in waiting:
        for keyword in ("$defs", "definitions"):
            held = schema.pop(keyword, None)
            for name, part in held.items() if isinstance(held, dict) else ():
                definition = part if isinstance(part, dict) else {}
                if gathered.setdefault(_plain(name), definition) is definition:
                    waiting.append(definition)
        waiting += [part for part, _ in parts_of(schema)]
    if gathered:
        root["$defs"] = gathered


def _mend_references(root: Schema) -> None:
    """Everywhere, in parts too that the flavour does not know."""
    moved: dict[str, str] = {}
    waiting: list[Any] = [root]
    for value in waiting:
        if isinstance(value, list):
            waiting += value
            continue
        if not isinstance(value, dict):
            continue
        if "$ref" in value and not isinstance(value["$ref"], dict):  # a dict is a property of that name
            reference = _reachable(value["$ref"], root, moved, waiting)
            if reference is None:
                del value["$ref"]
            else:
                value["$ref"] = reference
                value.pop("type", None)
        waiting += [part for name, part in value.items() if name not in PLAIN_DATA]


def _reachable(reference: object, root: Schema, moved: dict[str, str], waiting: list[Any]) -> str | None:
    """The reference as the flavour writes it; None for what lies elsewhere or nowhere."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    names = [unquote(name).replace("~1", "/").replace("~0", "~") for name in reference.split("/")[1:]]
    if not names:
        return "#" if reference == "#" else None
    if names[0] in ("definitions", "$defs") and len(names) > 1:
        wanted = DEFINITIONS + "/".join((_plain(names[1]), *names[2:]))
        return wanted if referred(root, wanted) is not None else None
    if reference not in moved and len(moved) < MOST_MOVED:
        target: Any = root
        for name in names:
            if isinstance(target, list) and name.isdecimal() and int(name[:9]) < len(target):
                target = target[int(name[:9])]
            else:
                target = target.get(name) if isinstance(target, dict) else None
        if isinstance(target, dict):
            definitions = root.setdefault("$defs", {})
            name = moved[reference] = _free_name(names[-1], definitions)
            definitions[name] = _copied(target)
            waiting.append(definitions[name])
    return DEFINITIONS + moved[reference] if reference in moved else None


def _plain(name: str) -> str:
    return name.replace("/", "_") or "_"


def _free_name(wanted: str, taken: Schema) -> str:
    name = plain = re.sub(r"\W", "_", wanted) or "_"
    number = 1
    while name in taken:
        number += 1
        name = f"{plain}_{number}"
    return name


def _inline_root(root: Schema) -> None:
    """What a tool's schema refers to as a whole takes its place."""
    target = referred(root, root["$ref"]) if isinstance(root.get("$ref"), str) else None
    if target is not None and target is not root:
        del root["$ref"]
        for keyword, value in target.items():
            root.setdefault(keyword, value)


# ---- keywords


def _mend_shapes(schema: Schema) -> None:
    """Keywords that hold what they cannot hold."""
    if isinstance(items := schema.get("items"), list):  # how older drafts wrote tuples
        schema.setdefault("prefixItems", items)
    for keyword, kinds in SHAPES.items():
        if keyword in schema and not isinstance(schema[keyword], kinds):
            del schema[keyword]
    if "properties" in schema:
        properties = {name: part for name, part in schema["properties"].items() if part is not False}
        schema["properties"] = {
            name: part if isinstance(part, dict) else {} for name, part in properties.items()
        }
    if "required" in schema:
        schema["required"] = [name for name in schema["required"] if isinstance(name, str)]
    if "anyOf" in schema:
        choices = [part if isinstance(part, dict) else {} for part in schema["anyOf"] if part is not False]
        schema["anyOf"] = choices
        if not choices:
            del schema["anyOf"]
    _mend_type_names(schema)


def _mend_type_names(schema: Schema) -> None:
    if "type" not in schema:
        return
    kinds = schema["type"]
    listed = kinds if isinstance(kinds, list) else [kinds]
    words = [word.strip().lower() for word in listed if isinstance(word, str)]
    known = dict.fromkeys(SPELLINGS.get(word, word) for word in words)
    fitting = [kind for kind in known if kind in TYPES]
    if fitting and fitting == listed:
        return
    if not fitting:
        del schema["type"]
    else:
        schema["type"] = fitting[0] if len(fitting) == 1 else fitting


def _join_choices(schema: Schema, root: Schema, *, holds_fields: bool) -> None:
    """A type beside `anyOf` goes into the choices. Where the schema has fields of its own beside them, the
    choices' fields become optional ones of it instead."""
    if "anyOf" not in schema or "type" not in schema:
        return
    kind = schema["type"]
    own = [name for name in KEYWORDS.get(kind, ()) if name in schema] if isinstance(kind, str) else []
    if holds_fields or (own and kind in ("object", "array")):
        choices = schema.pop("anyOf")
        if kind == "object":
            _take_fields(schema, choices, root if holds_fields else None)
        return
    beside = {name: schema.pop(name) for name in ("type", *own)}
    for choice in schema["anyOf"]:
        if not {"type", "anyOf", "$ref"} & choice.keys():
            choice |= {name: value for name, value in beside.items() if name not in choice}


def _take_fields(schema: Schema, choices: list[Schema], root: Schema | None) -> None:
    own = schema.get("properties", {})
    variants: dict[str, list[Any]] = {}
    always: set[str] | None = None
    for choice in choices:
        if root is not None and isinstance(choice.get("$ref"), str):
            choice = referred(root, choice["$ref"]) or {}
        fields = choice.get("properties")
        for name, part in fields.items() if isinstance(fields, dict) else ():
            if name not in own and part not in (known := variants.setdefault(name, [])):
                known.append(part)
        names = {name for name in choice.get("required") or () if isinstance(name, str)}
        always = names if always is None else always & names
    for name, parts in variants.items():
        own = own | {name: parts[0] if len(parts) == 1 else {"anyOf": parts}}
    if own:
        schema["properties"] = own
    required = schema.get("required", [])
    if more := sorted((always or set()) & own.keys() - set(required)):
        schema["required"] = [*required, *more]


# ---- types


def _mend_types(schema: Schema) -> None:
    if "enum" in schema:
        _mend_enum(schema)
    kinds = schema.get("type")
    if kinds is None and "description" in schema and schema.keys() <= ANNOTATIONS | {"default"}:
        _type_by_default(schema)
        return
    beside = schema.keys() - ANNOTATIONS - ROOT_ONLY - {"type"}
    if isinstance(kinds, list) and len(kinds) > 1 and beside and "enum" not in schema:
        _split(schema, {kind: {} for kind in kinds})


def _mend_enum(schema: Schema) -> None:
    """Values of no allowed type go; values of several types become a choice."""
    values = schema["enum"]
    if not values:
        del schema["enum"]
        return
    kinds = schema.get("type", [])
    listed = [kinds] if isinstance(kinds, str) else kinds
    used = [kind for kind in listed if any(is_of_type(value, kind) for value in values)]
    if not used:
        used = list(dict.fromkeys(_type_of(value) for value in values))
    if "number" in used:
        used = [kind for kind in used if kind != "integer"]
    schema.pop("anyOf", None)
    schema.pop("$ref", None)
    schema["enum"] = [value for value in values if any(is_of_type(value, kind) for kind in used)]
    if len(used) == 1:
        schema["type"] = used[0]
    elif len(used) == 2 and "null" in used and not {"array", "object"} & set(used):
        schema["type"] = used
    else:
        values = schema.pop("enum")
        schema.pop("type", None)
        _split(schema, {kind: {"enum": [v for v in values if is_of_type(v, kind)]} for kind in used})


def _split(schema: Schema, kinds: dict[str, Schema]) -> None:
    """One choice for each type, with the keywords that are about it."""
    about = {name: schema.pop(name) for names in KEYWORDS.values() for name in names if name in schema}
    schema.pop("type", None)
    schema["anyOf"] = [
        {"type": kind} | {name: about[name] for name in KEYWORDS.get(kind, ()) if name in about} | more
        for kind, more in kinds.items()
    ]
    for choice in schema["anyOf"]:
        _mend_required(choice)


def _type_of(value: object) -> str:
    kind = next(kind for kind in ANY if is_of_type(value, kind))
    return "integer" if isinstance(value, int) and kind == "number" else kind


def _type_by_default(schema: Schema) -> None:
    """Nothing is said about the value: any type, or that of its default."""
    default = schema.pop("default", None)
    if default is None:
        schema["type"] = list(ANY)
    else:
        kind = _type_of(default)
        schema |= {"type": "number" if kind == "integer" else kind, "default": default}


def _mend_required(schema: Schema) -> None:
    """What is required is a property; unless the schema takes no others."""
    properties = schema.get("properties", {})
    missing = [name for name in schema.get("required", ()) if name not in properties]
    if not missing:
        return
    if schema.get("additionalProperties") is False:
        schema["required"] = [name for name in schema["required"] if name in properties]
    else:
        schema["properties"] = properties | {name: {} for name in missing}
