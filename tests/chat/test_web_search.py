"""`$web_search` between the wire and the model: the pure part."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perilune.chat.declaration import declare
from perilune.chat.messages import Request
from perilune.chat.web_search import (
    GONE,
    Kept,
    declared,
    for_model,
    query_of,
    searches_named,
    wire_arguments,
    wire_id,
)
from perilune.chat.wire import decode_request
from perilune.errors import InputError

SEARCH = {"type": "builtin_function", "function": {"name": "$web_search"}}
KEPT = Kept("moon?", '{ "query" : "moon?" }', '{"results": []}', 12)
ID = "01ABCDEFGHJKMNPQRSTVWXYZ00"


def request(*messages: dict[str, Any], **fields: Any) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}, *messages], "tools": [SEARCH]}
    return decode_request(json.dumps(body | fields).encode()).request


def conversation(arguments: str, answer: Any = None, name: str = "$web_search") -> tuple[dict[str, Any], ...]:
    call = {"id": "x", "type": "function", "function": {"name": name, "arguments": arguments}}
    content = arguments if answer is None else answer
    return (
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "name": name, "content": content},
    )


def test_the_tool_is_declared_as_a_function() -> None:
    found = for_model(request(), {})
    assert "type web_search = (_: {" in declare(found.tools) and "query: string" in declare(found.tools)
    assert "$" not in declare(found.tools)
    assert declared(request()) and not declared(found) and not declared(request(tools=[]))


def test_a_choice_of_the_tool_is_one_of_the_function() -> None:
    for kind in ("function", "builtin_function"):
        choice = {"type": kind, "function": {"name": "$web_search"}}
        asked = request(tool_choice=choice, thinking={"type": "disabled"})
        assert for_model(asked, {}).tool_choice == "tool:web_search"


def test_results_take_the_place_of_their_reference() -> None:
    asked = request(*conversation(wire_arguments(ID, KEPT)))
    assert searches_named(asked) == {ID}
    _, call, result = for_model(asked, {ID: KEPT}).messages
    assert (call.tool_calls[0].id, call.tool_calls[0].name) == ("functions.web_search:0", "web_search")
    assert call.tool_calls[0].arguments == KEPT.arguments  # to the byte
    assert (result.tool_call_id, result.name, result.content) == (
        "functions.web_search:0",
        "web_search",
        KEPT.text,
    )
    assert wire_id("functions.web_search:0") == "functions.$web_search:0"


@pytest.mark.parametrize("shape", ["text", "parts", "again", "more"])
def test_clients_may_write_the_reference_anew(shape: str) -> None:
    arguments = wire_arguments(ID, KEPT)
    answers: dict[str, Any] = {
        "text": arguments,
        "parts": [{"type": "text", "text": arguments}],
        "again": json.dumps(json.loads(arguments), indent=2),
        "more": json.dumps(json.loads(arguments) | {"extra": 1}),
    }
    asked = request(*conversation(arguments, answers[shape]))
    assert for_model(asked, {ID: KEPT}).messages[2].content == KEPT.text


def test_results_that_are_gone_are_said_to_be() -> None:
    asked = request(*conversation(wire_arguments(ID, KEPT)))
    _, call, result = for_model(asked, {}).messages
    assert result.content == GONE and call.tool_calls[0].arguments == '{"query": "moon?"}'


@pytest.mark.parametrize("content", ["my own results", "{}", '{"search_result": 3}', "", "[" * 2000])
def test_an_answer_of_the_clients_own_stays(content: str) -> None:
    asked = request(*conversation('{"query": "q"}', content))
    assert searches_named(asked) == set()
    _, call, result = for_model(asked, {}).messages
    assert result.content == content and call.tool_calls[0].arguments == '{"query": "q"}'


def test_other_calls_are_left_alone() -> None:
    mine = {"type": "function", "function": {"name": "weather"}}
    asked = request(*conversation(wire_arguments(ID, KEPT), name="weather"), tools=[mine])
    assert for_model(asked, {ID: KEPT}) is asked
    both = request(*conversation(wire_arguments(ID, KEPT), name="weather"), tools=[mine, SEARCH])
    assert for_model(both, {ID: KEPT}).messages == both.messages


def test_a_function_of_the_same_name_is_refused() -> None:
    mine = {"type": "function", "function": {"name": "web_search"}}
    with pytest.raises(InputError, match="rename it"):
        for_model(request(tools=[mine, SEARCH]), {})
    assert for_model(request(tools=[mine]), {}).tools[0].name == "web_search"


@pytest.mark.parametrize(
    ("arguments", "query"),
    [
        ('{"query": " moon "}', "moon"),
        ('{"query": 3}', ""),
        ("{}", ""),
        ("not json", ""),
        ("[" * 5000, ""),
        ('{"query": "a", "more": 1}', "a"),
    ],
)
def test_queries(arguments: str, query: str) -> None:
    assert query_of(arguments) == query
