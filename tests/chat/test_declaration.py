"""Tools as the model is shown them: TypeScript with every quirk of the published format, or JSON."""

import msgspec
import pytest

from perilune.chat.declaration import declare, declare_json, declare_typescript
from perilune.chat.messages import Tool

WEATHER = Tool(
    name="get_weather",
    description="Get current weather for a city.",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "City name"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
        },
        "required": ["city"],
    },
)
DECLARED = """# Tools

## functions
namespace functions {
// Get current weather for a city.
type get_weather = (_: {
  // City name
  city: string,
  // maximum: 7, minimum: 1
  days?: number,
  // Default: "celsius"
  unit?: "celsius" | "fahrenheit"
}) => any;
}
"""
PATTERNS = "// maxLength: 9, minLength: 1, pattern: ^a$"


def test_the_declaration_of_the_reference() -> None:
    assert declare((WEATHER,)) == DECLARED


def function_of(parameters: dict) -> str:
    text = declare((Tool(name="f", parameters=parameters),))
    assert text.startswith("# Tools\n\n## functions\nnamespace functions {\n")
    return text.split("{\n", 1)[1].removesuffix("\n}\n")


def test_declaration_of_nested_and_odd_schemas() -> None:
    parameters = {
        "type": "object",
        "properties": {
            "z": {"type": "array", "items": {"type": "string", "description": "one"}, "minItems": 1},
            "o": {"type": "object", "properties": {"k": {"type": ["string", "null", "array"]}}},
            "m": {"type": "object", "additionalProperties": {"type": "integer"}},
            "e": {"enum": [1, True, None, "a"]},
            "u": {"anyOf": [{"type": "string"}, {"type": "boolean"}], "description": "two\n\nlines"},
            "d": {"type": "boolean", "default": False},
            "n": {},
            "l": {"type": "array"},
        },
        "required": ["z", "u"],
        "additionalProperties": False,
    }
    assert function_of(parameters) == (
        "type f = (_: {\n"
        "  // two\n\n  // lines\n"
        "  u: string | boolean,\n"
        "  // minItems: 1\n"
        "  z: Array<\n    // one\n    string\n  >,\n"
        "  // Default: False\n"
        "  d?: boolean,\n"
        '  e?: 1 | True | None | "a",\n'
        "  l?: Array<any>,\n"
        "  m?: {\n    [k: string]: number\n  },\n"
        "  n?: any,\n"
        "  o?: {\n    k?: string | null | Array<any>\n  },\n"
        "  [k: string]: never\n"
        "}) => any;"
    )
    assert function_of({}) == "type f = (_: {}) => any;"


def test_declaration_of_references() -> None:
    parameters = {
        "type": "object",
        "$defs": {
            "Node": {"type": "object", "properties": {"v": {"type": "number"}}, "description": "A node"}
        },
        "properties": {"n": {"$ref": "#/$defs/Node"}},
    }
    assert function_of(parameters) == (
        "// A node\ninterface Node {\n  v?: number\n}\ntype f = (_: {\n  n?: Node\n}) => any;"
    )
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}}}
    assert (
        function_of(tree)
        == "interface parameters {\n  left?: parameters\n}\ntype f = (_: parameters) => any;"
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "string"}]},
        {"$ref": "#/definitions/X"},
        {"type": "string", "enum": ["a", 1]},
        {"type": ["string", "frob"]},
        {"minimum": 1},
    ],
)
def test_schemas_outside_the_format_turn_the_declaration_into_json(schema: dict) -> None:
    tool = Tool(name="f", description="é", parameters={"type": "object", "properties": {"b": schema}})
    text = declare((WEATHER, tool))
    assert text.startswith(
        '[{"function":{"description":"Get current weather for a city.","name":"get_weather"'
    )
    assert '"description":"é"' in text
    assert [entry["type"] for entry in msgspec.json.decode(text)] == ["function", "function"]


# ---- rules of tool declarations


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        ({"type": "frob"}, "frob"),
        ({"type": "null"}, "null"),
        ({"type": None}, "None"),
        ({"type": "object"}, "{}"),
        ({"type": "object", "required": None}, "{}"),
        ({"type": "array", "items": {}}, "Array<any>"),
        ({"type": "array", "items": False}, "Array<any>"),
        ({"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}, "Array<Array<number>>"),
        ({"type": ["integer", "boolean", "object"]}, "number | boolean | {}"),
        ({"enum": ["a", "b"], "type": ["null", "string"]}, '"a" | "b"'),
        ({"enum": [None, 1.5, False]}, "None | 1.5 | False"),
        ({"anyOf": [{"enum": ["a"]}, {"type": "array"}, {}]}, '"a" | Array<any> | any'),
        ({"additionalProperties": True, "type": "object"}, "{\n    [k: string]: any\n  }"),
        ({"additionalProperties": {}, "type": "object"}, "{\n    [k: string]: any\n  }"),
        (True, "any"),
        (False, "null"),
    ],
)
def test_types(schema: object, written: str) -> None:
    parameters = {"type": "object", "properties": {"p": schema}, "required": ["p"]}
    assert function_of(parameters) == f"type f = (_: {{\n  p: {written}\n}}) => any;"


@pytest.mark.parametrize(
    ("schema", "comment"),
    [
        ({"type": "string", "pattern": "^a$", "minLength": 1, "maxLength": 9, "format": "x"}, PATTERNS),
        (
            {"type": "number", "minimum": 0.5, "maximum": None, "multipleOf": 2},
            "// maximum: None, minimum: 0.5",
        ),
        ({"type": "array", "minItems": 1, "maxItems": 2, "uniqueItems": True}, "// maxItems: 2, minItems: 1"),
        ({"type": "object", "minProperties": 1}, ""),
        ({"type": "string", "enum": ["a"], "maxLength": 2}, ""),
        ({"type": "string", "default": "é"}, '// Default: "é"'),
        ({"type": "array", "default": [1, {"a": None}]}, '// Default: [1, {"a": null}]'),
        ({"type": "number", "default": 1e22}, "// Default: 1e+22"),
        ({"type": "boolean", "default": True}, "// Default: True"),
        ({"type": "string", "default": None}, ""),
        ({"type": "string", "default": ""}, '// Default: ""'),
        ({"type": "string", "description": "a\n\nb"}, "// a\n\n  // b"),
        ({"type": "string", "description": ""}, ""),
    ],
)
def test_comments(schema: dict, comment: str) -> None:
    text = function_of({"type": "object", "properties": {"p": schema}})
    above = text.removeprefix("type f = (_: {\n").split("  p?:")[0]
    assert above == (f"  {comment}\n" if comment else "")


def test_a_root_reference_within_a_definition_names_an_interface_that_is_not_there() -> None:
    """A quirk of the published format, kept."""
    node = {"type": "object", "properties": {"up": {"$ref": "#"}}}
    parameters = {
        "type": "object",
        "$defs": {"Node": node},
        "properties": {"n": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
    }
    assert function_of(parameters) == (
        "interface Node {\n  up?: parameters\n}\ntype f = (_: {\n  n?: Array<Node>\n}) => any;"
    )


@pytest.mark.parametrize(
    "root",
    [
        {"properties": {"p": {"allOf": [{"type": "string"}]}}},
        {"properties": {"p": {"$ref": "#/$defs/Missing"}}},
        {"properties": {"p": {"$ref": 5}}},
        {"properties": {"p": []}},
        {"properties": {"p": None}},
        {"properties": {"p": {"anyOf": [[]]}}},
        {"properties": {"p": {"anyOf": [{"type": None}]}}},
        {"properties": {"p": {"type": "string", "description": 5}}},
        {"properties": {"p": {"enum": [1], "type": ["string", "integer"]}}},
        {"properties": {"p": {"enum": ["a"], "type": "boolean"}}},
        {"properties": {"p": {"type": "object", "additionalProperties": "any"}}},
        {"properties": {"p": {"type": "object", "additionalProperties": []}}},
        {"properties": {}, "required": None},
        {"properties": None},
        {"properties": {}, "$defs": {"X": True}},
        {"properties": {}, "$defs": [["X", {"type": "string"}]]},
    ],
)
def test_one_schema_outside_the_format_makes_all_tools_json(root: dict) -> None:
    tools = (WEATHER, Tool(name="f", parameters={"type": "object", **root}))
    assert [entry["function"]["name"] for entry in msgspec.json.decode(declare(tools))] == [
        "get_weather",
        "f",
    ]
    assert declare_typescript(tools) == ""


def test_json_declarations_sort_keys_at_every_depth_and_keep_lists() -> None:
    tool = Tool(name="f", description="é", parameters={"type": "object", "b": [2, 1, {"z": 0, "a": 1}]})
    assert declare_json((tool,)) == (
        '[{"function":{"description":"é","name":"f","parameters":'
        '{"b":[2,1,{"a":1,"z":0}],"type":"object"}},"type":"function"}]'
    )
