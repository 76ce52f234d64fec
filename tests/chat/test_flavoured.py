"""Moonshot-flavoured JSON schema: what is refused in which words, how it is mended; nothing hangs."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perilune.agent.profiles import FOLDER, load_profile
from perilune.chat.flavoured import MAX_BYTES, flaw_of
from perilune.chat.flavoured_repair import mended

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
NODE: Schema = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}


def fields(**properties: Any) -> Schema:
    return {"type": "object", "properties": properties}


ACCEPTED: dict[str, Schema] = {
    "nothing": {},
    "an open property": fields(x={}),
    "open items": fields(x={"type": "array", "items": {}}),
    "words that are not enforced": fields(
        x={
            "type": "string",
            "format": "date",
            "oneOf": [{"minLength": 1}],
            "not": {"const": "a"},
            "examples": ["b"],
        }
    )
    | {"$schema": "http://json-schema.org/draft-07/schema#", "$comment": "c", "minProperties": 1},
    "a schema for other properties": fields(x=TEXT) | {"additionalProperties": TEXT},
    "pattern, title, default": fields(x={"type": "string", "pattern": "^a", "title": "t", "default": "a"}),
    "a list at the root": {"type": "array", "items": TEXT},
    "an enum with null": fields(x={"type": ["string", "null"], "enum": ["a", None]}),
    "a list of types alone": fields(x={"type": ["string", "null"], "description": "d"}),
    "a type within anyOf": fields(x={"anyOf": [TEXT, {"type": "null"}], "default": None}),
    "a reference": fields(x={"$ref": "#/$defs/a", "description": "d"}) | {"$defs": {"a": TEXT}},
    "recursion with an end": fields(x={"$ref": "#/$defs/node"})
    | {
        "required": ["x"],
        "$defs": {"node": fields(next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})},
    },
    "a tree": fields(name=TEXT, children={"type": "array", "items": {"$ref": "#"}})
    | {"required": ["children"]},
}
REFUSED: dict[str, tuple[Schema, str]] = {
    "an enum without a type": (fields(x={"enum": ["a"]}), "'properties.x': type is not defined"),
    "nothing but a description": (fields(x={"description": "d"}), "'properties.x': type is not defined"),
    "a type beside anyOf": (
        fields(x={"type": "string", "anyOf": [TEXT]}),
        "'properties.x': when using anyOf, type should be defined in anyOf items instead of the parent",
    ),
    "a type beside anyOf at the root": ({"type": "object", "anyOf": [{}]}, "'root': when using anyOf, type"),
    "a type beside a reference": (
        fields(x={"type": "string", "$ref": "#/$defs/a"}) | {"$defs": {"a": TEXT}},
        "'properties.x': when using $ref, type should be defined in the referenced schema instead",
    ),
    "definitions of an older draft": (
        fields(x={"$ref": "#/definitions/a"}) | {"definitions": {"a": TEXT}},
        "'properties.x.$ref': references must start with #/$defs/",
    ),
    "a reference to nothing": (
        fields(x={"$ref": "#/$defs/a"}),
        "'properties.x.$ref': invalid $ref path: #/$defs/a",
    ),
    "a reference elsewhere": (fields(x={"$ref": "https://example.org/a"}), "references must start with"),
    "a required name that is no property": (
        fields(x=TEXT) | {"required": ["y"]},
        "'required': required property 'y' is not defined in properties",
    ),
    "a value of another type": (
        fields(x={"type": "string", "enum": ["a", 1]}),
        "'properties.x.enum': enum value (1) does not match any type in [string]",
    ),
    "an enum of several types": (
        fields(x={"type": ["string", "integer"], "enum": ["a", 1]}),
        "'properties.x': an enum",
    ),
    "an empty enum": (
        fields(x={"type": "string", "enum": []}),
        "'properties.x.enum': enum array cannot be empty",
    ),
    "several types with a length": (
        fields(x={"type": ["string", "null"], "minLength": 1}),
        "'properties.x': keyword minLength is not allowed in combination with multiple types",
    ),
    "recursion without an end": (
        fields(x={"$ref": "#/$defs/node"}) | {"required": ["x"], "$defs": {"node": NODE}},
        "detected infinite recursion without termination condition",
    ),
    "a schema that needs itself": (
        fields(x={"$ref": "#"}) | {"required": ["x"]},
        "'properties.x': detected infinite",
    ),
    "a property called $ref": (fields(**{"$ref": TEXT}), "'properties': property name '$ref' is reserved"),
    "a property called required": (fields(required=TEXT), "property name 'required' is reserved"),
    "an unknown type": (fields(x={"type": "any"}), "'properties.x': invalid type: any"),
    "no type at all": (fields(x={"type": []}), "'properties.x': type array cannot be empty"),
    "a type that is a number": (
        fields(x={"type": 1}),
        "'properties.x': type must be string or array of strings",
    ),
    "properties in a list": (
        {"type": "object", "properties": []},
        "'properties': properties must be an object",
    ),
    "a property that is true": (fields(x=True), "'properties': property schema for 'x' must be an object"),
    "required as text": (fields(x=TEXT) | {"required": "x"}, "'required': required must be an array"),
    "items in a list": (
        fields(x={"type": "array", "items": [TEXT]}),
        "'properties.x.items': items must be an object",
    ),
    "an empty anyOf": (fields(x={"anyOf": []}), "'properties.x.anyOf': anyOf must have 1-500 items"),
    "a description in a list": (
        fields(x=TEXT | {"description": ["d"]}),
        "'properties.x.description': description must",
    ),
    "within items and anyOf": (
        fields(x={"type": "array", "items": {"anyOf": [TEXT, {"enum": [1]}]}}),
        "'properties.x.items.anyOf': type is not defined",
    ),
    "within a definition": (
        {"type": "object", "$defs": {"a": {"enum": [1]}}},
        "'$defs.a': type is not defined",
    ),
    "too many values": (fields(x={"type": "integer", "enum": list(range(1001))}), "more than 1000 items"),
    "too many choices": (fields(x={"anyOf": [TEXT] * 501}), "anyOf must have 1-500 items"),
    "too many properties": (fields(**{f"p{n}": {} for n in range(3001)}), "exceeds maximum limit of 3000"),
    "too many bytes": (
        fields(x=TEXT | {"description": "d" * MAX_BYTES}),
        "'root': schema exceeds maximum allowed size",
    ),
}
KEPT = {"a property called $ref", "a property called required"} | {
    name for name in REFUSED if "too many" in name
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_it_is_taken_and_not_touched(name: str) -> None:
    schema = ACCEPTED[name]
    assert flaw_of(schema) is None
    assert mended(schema) is schema


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_the_hosted_apis_words(name: str) -> None:
    schema, words = REFUSED[name]
    told = flaw_of(schema)
    assert told is not None and told.startswith("At path '") and words in told


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - KEPT))
@pytest.mark.parametrize("holds_fields", [False, True])
def test_it_is_mended(name: str, holds_fields: bool) -> None:
    schema = REFUSED[name][0]
    before = json.dumps(schema)
    repaired = mended(schema, holds_fields=holds_fields)
    assert flaw_of(repaired) is None and repaired != schema
    assert json.dumps(schema) == before
    assert not holds_fields or repaired["type"] == "object"


@pytest.mark.parametrize("name", sorted(KEPT))
def test_what_cannot_be_mended_stays(name: str) -> None:
    schema = REFUSED[name][0]
    assert mended(schema) == schema


MENDS: dict[str, tuple[Schema, Schema]] = {
    "the type of an enum": ({"enum": ["a", "b"]}, {"enum": ["a", "b"], "type": "string"}),
    "with null": ({"enum": [1, None]}, {"enum": [1, None], "type": ["integer", "null"]}),
    "of several types": (
        {"enum": ["a", 1, 2.5], "description": "d"},
        {
            "description": "d",
            "anyOf": [{"type": "string", "enum": ["a"]}, {"type": "number", "enum": [1, 2.5]}],
        },
    ),
    "values of no allowed type": ({"type": "string", "enum": ["a", 1]}, {"type": "string", "enum": ["a"]}),
    "nothing said": (
        {"description": "d"},
        {"description": "d", "type": ["string", "number", "boolean", "object", "array", "null"]},
    ),
    "the default's type": (
        {"description": "d", "default": 5},
        {"description": "d", "type": "number", "default": 5},
    ),
    "a type beside anyOf": (
        {"type": "string", "anyOf": [{"pattern": "^a"}, {"minLength": 3}]},
        {"anyOf": [{"pattern": "^a", "type": "string"}, {"minLength": 3, "type": "string"}]},
    ),
    "a type and a length beside anyOf": (
        {"type": "string", "maxLength": 9, "anyOf": [{"pattern": "^a"}, {"maxLength": 3}]},
        {
            "anyOf": [
                {"pattern": "^a", "type": "string", "maxLength": 9},
                {"maxLength": 3, "type": "string"},
            ]
        },
    ),
    "one of two is needed": (
        fields(a=TEXT, b=TEXT) | {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        fields(a=TEXT, b=TEXT),
    ),
    "fields of choices": (
        fields(a=TEXT)
        | {
            "anyOf": [
                {"properties": {"b": TEXT, "c": TEXT}, "required": ["c"]},
                {"properties": {"b": {"type": "integer"}, "c": TEXT}, "required": ["b", "c"]},
            ]
        },
        fields(a=TEXT, b={"anyOf": [TEXT, {"type": "integer"}]}, c=TEXT) | {"required": ["c"]},
    ),
    "several types with a length": (
        {"type": ["string", "null"], "minLength": 1, "default": None, "description": "d"},
        {
            "default": None,
            "description": "d",
            "anyOf": [{"type": "string", "minLength": 1}, {"type": "null"}],
        },
    ),
    "an object or null": (
        {"type": ["object", "null"], "properties": {"a": TEXT}, "required": ["a"]},
        {"anyOf": [fields(a=TEXT) | {"required": ["a"]}, {"type": "null"}]},
    ),
    "a required name": (fields(a=TEXT) | {"required": ["b"]}, fields(a=TEXT, b={}) | {"required": ["b"]}),
    "a required name of a closed object": (
        fields(a=TEXT) | {"required": ["a", "b"], "additionalProperties": False},
        fields(a=TEXT) | {"required": ["a"], "additionalProperties": False},
    ),
    "a programmer's types": (
        fields(a={"type": "int"}, b={"type": "str"}),
        fields(a={"type": "integer"}, b=TEXT),
    ),
    "a tuple": (
        {"type": "array", "items": [TEXT, {"type": "null"}]},
        {"type": "array", "prefixItems": [TEXT, {"type": "null"}]},
    ),
    "older definitions": (
        fields(a={"$ref": "#/definitions/x/y"}, b={"oneOf": [{"$ref": "#/definitions/x"}]})
        | {"definitions": {"x": {"y": TEXT}}},
        fields(a={"$ref": "#/$defs/x/y"}, b={"oneOf": [{"$ref": "#/$defs/x"}]})
        | {"$defs": {"x": {"y": TEXT}}},
    ),
    "a reference to a place": (
        fields(a=TEXT, b={"$ref": "#/properties/a"}),
        fields(a=TEXT, b={"$ref": "#/$defs/a"}) | {"$defs": {"a": TEXT}},
    ),
    "a reference to nowhere": (fields(a={"$ref": "other.json"}), fields(a={})),
    "no end": (
        fields(x={"$ref": "#/$defs/node"}) | {"required": ["x"], "$defs": {"node": NODE}},
        fields(x={}) | {"required": ["x"], "$defs": {"node": fields(next={}) | {"required": ["next"]}}},
    ),
}


@pytest.mark.parametrize("name", MENDS)
def test_a_mend_keeps_what_the_schema_says(name: str) -> None:
    schema, repaired = MENDS[name]
    assert flaw_of(repaired) is None, "the expectation itself must be of the flavour"
    assert mended(schema) == repaired


def test_a_tools_schema_stays_an_object_with_fields() -> None:
    chosen = {
        "type": "object",
        "anyOf": [fields(a=TEXT), {"$ref": "#/$defs/b"}],
        "$defs": {"b": fields(b=TEXT)},
    }
    assert mended(chosen, holds_fields=True)["properties"] == {"a": TEXT, "b": TEXT}
    whole = {"$ref": "#/definitions/call", "definitions": {"call": fields(a=TEXT)}}
    assert mended(whole, holds_fields=True)["properties"] == {"a": TEXT}


@pytest.mark.parametrize("name", [path.stem for path in FOLDER.glob("*.json")])
def test_our_own_tools_are_of_the_flavour(name: str) -> None:
    for tool in load_profile(name).tools:
        assert flaw_of(dict(tool.parameters)) is None, tool.name


# ---- whatever is sent

NAMES = st.sampled_from(["a", "b", "$ref", "anyOf", "properties", "type", "x/y", ""])
REFERENCES = st.sampled_from(
    ["#", "#/", "#/$defs", "#/$defs/a", "#/$defs/b", "#/definitions/a", "#/definitions/x~1y", "", "a"]
) | st.sampled_from(
    [
        "#/properties/a",
        "#/properties",
        "#/$defs/a/properties/b",
        "http://a/b",
        "#/anyOf/0",
        "#/anyOf/9999999999",
    ]
)
JUNK = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False)
JUNK = (
    JUNK
    | st.sampled_from(["string", "any", "", "int"])
    | st.lists(st.sampled_from(["string", "null", 1, "list"]))
)
TYPES = st.sampled_from(["string", "object", "array", "integer", "null", "any", "number", "boolean"])


def keyword(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    either = inner | JUNK
    named = st.dictionaries(NAMES, either, max_size=4) | JUNK
    return st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES | st.lists(TYPES, max_size=3) | JUNK,
            "properties": named,
            "$defs": named,
            "definitions": named,
            "required": st.lists(NAMES, max_size=3) | JUNK,
            "items": either | st.lists(inner, max_size=2),
            "anyOf": st.lists(either, max_size=3) | JUNK,
            "oneOf": st.lists(either, max_size=2),
            "$ref": REFERENCES | JUNK,
            "enum": st.lists(JUNK, max_size=3) | JUNK,
            "additionalProperties": either,
            "description": st.just("d") | JUNK,
            "default": JUNK,
            "minLength": JUNK,
            "minItems": st.integers(0, 2) | JUNK,
            "$id": st.just("i"),
        },
    )


SCHEMAS = st.recursive(st.just({}) | st.just(TEXT), keyword, max_leaves=25)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(SCHEMAS, st.booleans())
def test_any_schema_is_judged_and_mended(schema: Schema, holds_fields: bool) -> None:
    before = json.dumps(schema)
    told = flaw_of(schema)
    repaired = mended(schema, holds_fields=holds_fields)
    assert json.dumps(schema) == before, "what was sent is not changed"
    assert told is not None or repaired is schema
    text = json.dumps(repaired)
    assert len(text) < 100 * len(before) + 1000
    left = flaw_of(repaired)
    assert left is None or "is reserved" in left
    assert mended(repaired, holds_fields=holds_fields) == repaired


def ring(size: int) -> Schema:
    """Definitions that need each other, all the way round."""
    chain = {
        f"d{n}": fields(n={"$ref": f"#/$defs/d{(n + 1) % size}"}) | {"required": ["n"]} for n in range(size)
    }
    return fields(x={"$ref": "#/$defs/d0"}) | {"required": ["x"], "$defs": chain}


def fan(size: int) -> Schema:
    """A definition with many choices, each of which needs the definition."""
    choices = [{"$ref": f"#/$defs/d{n}"} for n in range(size)]
    back = {f"d{n}": {"$ref": "#/$defs/all"} for n in range(size)}
    return {"$ref": "#/$defs/all", "$defs": {"all": {"anyOf": choices}, **back}}


def copies(size: int) -> Schema:
    """Parts that would each take in the whole, were references followed."""
    part = {"type": "object", "properties": {"a": TEXT}, "anyOf": [{"$ref": "#"}]}
    return fields(**{f"p{n}": part for n in range(size)}) | {"anyOf": [{"$ref": "#"}]}


def deep(size: int) -> Schema:
    schema: Schema = {"enum": [1]}
    for _ in range(size):
        schema = fields(x=schema)
    return schema


HARD = {
    "a ring": ring(1500),
    "a fan": fan(490),
    "copies": copies(900),
    "depth": deep(60),
    "huge": fields(**{f"p{n}": {"enum": [1]} for n in range(200_000)}),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_schemas_take_no_time_and_no_room(name: str) -> None:
    schema = HARD[name]
    began = time.process_time()
    assert flaw_of(schema) is not None
    repaired = mended(schema, holds_fields=True)
    assert time.process_time() - began < 2
    assert len(json.dumps(repaired)) < 3 * len(json.dumps(schema))
