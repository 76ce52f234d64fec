"""NUL and half surrogate pairs are refused with the name of the field; nothing else is mistaken for them."""

import json
from typing import Any

import pytest

from perilune.chat.messages import Message, Request
from perilune.chat.wire import decode_request, encode_request
from perilune.errors import InputError

CALLS = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "X"}}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "X"}}]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "a"}], **fields}


def said(**fields: Any) -> dict[str, Any]:
    return body(messages=[{"role": "user", "content": "a"}, {"role": "user", "content": "b", **fields}])


@pytest.mark.parametrize("bad", ["a\x00b", "a\ud83c", "\udf19\ud83c", "\udfff"], ids=ascii)
@pytest.mark.parametrize(
    ("call", "field"),
    [
        (said(content="X"), "messages[1].content"),
        (
            said(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "X"}]),
            "messages[1].content[1].text",
        ),
        (said(role="assistant", reasoning_content="X"), "messages[1].reasoning_content"),
        (said(role="assistant", tool_calls=CALLS), "messages[1].tool_calls[0].function.arguments"),
        (said(role="tool", tool_call_id="X"), "messages[1].tool_call_id"),
        (said(name="X"), "messages[1].name"),
        (body(tools=TOOLS), "tools[0].function.description"),
        (body(stop=["a", "X"]), "stop[1]"),
        (body(model="X"), "model"),
        (
            body(tools=[{"type": "function", "function": {"name": "f", "parameters": {"X": 1}}}]),
            "tools[0].function.parameters",
        ),
        ({**body(), "X": 1}, "body"),
    ],
)
def test_it_is_refused_by_the_name_of_its_field(call: dict[str, Any], field: str, bad: str) -> None:
    text = json.dumps(call).replace('"X"', json.dumps(bad))
    with pytest.raises(InputError, match=r"NUL|surrogate") as caught:
        decode_request(text.encode())
    assert caught.value.field == field
    assert caught.value.mend


def test_raw_bytes_of_half_a_pair_are_named_too() -> None:
    text = json.dumps(body(stop=["X"])).encode().replace(b"X", b"\xed\xa0\x80")
    with pytest.raises(InputError, match="surrogate") as caught:
        decode_request(text)
    assert caught.value.field == "stop[0]"


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "\\ud83c", "🌙", "\x01\x7f\ufffd"])
def test_what_only_looks_like_it_is_taken(text: str) -> None:
    call = decode_request(json.dumps(body(messages=[{"role": "user", "content": text}])).encode())
    assert call.request.messages[0].content == text


@pytest.mark.parametrize(
    "raw", [b'{"a": "\\u0000', b"\xff\\u0000", b'{"a":' + b"[" * 100_000 + b'"\\ud800"', b'{"a": "\\ud800"']
)
def test_a_body_that_is_no_json_is_called_so(raw: bytes) -> None:
    with pytest.raises(InputError, match=r"not valid JSON|nested too deeply"):
        decode_request(raw)


def test_the_thinking_budget_is_neither_read_nor_sent() -> None:
    call = decode_request(json.dumps(body(thinking_budget=5)).encode())
    assert call.request.thinking_budget is None
    request = Request(model="m", messages=(Message(role="user", content="a"),), thinking_budget=5)
    assert "budget" not in json.dumps(encode_request(request))
