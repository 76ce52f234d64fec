"""The request side of the OpenAI dialect: what is understood, what is refused and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perilune.chat.declaration import declare
from perilune.chat.messages import ImagePart, Message, Request, TextPart, Tool, ToolCall
from perilune.chat.wire import decode_request, encode_request
from perilune.errors import InputError, UnsupportedInput

USER = {"role": "user", "content": "Hi"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Look outside",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
NAMED = {"type": "function", "function": {"name": "weather"}}
OFF = {"type": "disabled"}


def decode(**fields: Any) -> Request:
    return decode_call(**fields).request


def decode_call(**fields: Any) -> Any:
    return decode_request(json.dumps({"model": "m", "messages": [USER]} | fields).encode())


def called(*ids: str, **more: Any) -> dict[str, Any]:
    calls = [{"id": i, "type": "function", "function": {"name": "weather", "arguments": "{}"}} for i in ids]
    return {"role": "assistant", "tool_calls": calls} | more


def answer(call_id: str, content: Any = "dry") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


# ---- understood


def test_a_minimal_request_thinks_and_does_not_stream() -> None:
    call = decode_call()
    assert call.request == Request(model="m", messages=(Message(role="user", content="Hi"),))
    assert call.request.thinking and not call.stream and not call.include_usage


def test_unknown_and_harmless_fields_are_ignored() -> None:
    extra = {
        "user": "u", "metadata": {"a": 1}, "store": False, "parallel_tool_calls": True, "n": 1,
        "presence_penalty": 0, "logprobs": False, "safety_identifier": "x", "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"}, "stop": None, "service_tier": "auto",
    }  # fmt: skip
    assert decode(**extra) == decode()


def test_options_arrive_where_the_request_keeps_them() -> None:
    call = decode_call(
        temperature=1, top_p=0.95, seed=7, stop="END", stream=True, prompt_cache_key="k",
        stream_options={"include_usage": True},
    )  # fmt: skip
    request = call.request
    assert (request.temperature, request.top_p, request.seed) == (1.0, 0.95, 7)
    assert request.stop == ("END",) and request.prompt_cache_key == "k"
    assert call.stream and call.include_usage
    assert decode(stop=["a", "b"]).stop == ("a", "b")


def test_parallel_calls_can_be_switched_off() -> None:
    assert decode(parallel_tool_calls=False).max_parallel_calls == 1
    assert decode(parallel_tool_calls=True).max_parallel_calls is None


def test_the_newer_name_of_the_token_limit_wins() -> None:
    assert decode(max_tokens=5).max_tokens == 5
    assert decode(max_completion_tokens=6).max_tokens == 6
    assert decode(max_tokens=5, max_completion_tokens=6).max_tokens == 6


@pytest.mark.parametrize(
    ("fields", "thinking", "keep"),
    [
        ({}, True, False),
        ({"thinking": {"type": "enabled"}}, True, False),
        ({"thinking": {"type": "enabled", "keep": "all"}}, True, True),
        ({"thinking": {"type": "enabled", "keep": None}}, True, False),
        ({"thinking": OFF}, False, False),
        ({"chat_template_kwargs": {"thinking": False}}, False, False),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False, False),
        ({"chat_template_kwargs": {"thinking": True, "preserve_thinking": True}}, True, True),
        ({"thinking": OFF, "chat_template_kwargs": {"thinking": False}}, False, False),
        ({"reasoning_effort": "none"}, False, False),
        ({"reasoning_effort": "high"}, True, False),
        ({"reasoning_effort": "none", "thinking": {"type": "enabled"}}, True, False),
    ],
)
def test_every_spelling_of_thinking(fields: dict[str, Any], thinking: bool, keep: bool) -> None:
    request = decode(**fields)
    assert (request.thinking, request.keep_thinking) == (thinking, keep)


def test_content_parts_become_text_unless_there_is_an_image() -> None:
    two = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert decode(messages=[{"role": "user", "content": two}]).messages[0].content == "ab"
    for url in ("data:image/png;base64,AA==", {"url": "data:image/png;base64,AA=="}):
        content = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": url}]
        assert decode(messages=[{"role": "user", "content": content}]).messages[0].content == (
            TextPart("see"),
            ImagePart("data:image/png;base64,AA=="),
        )


def test_developer_is_system() -> None:
    assert decode(messages=[{"role": "developer", "content": "be brief"}, USER]).messages[0].role == "system"


@pytest.mark.parametrize("content", [{"content": ""}, {"content": None}, {}])
def test_a_message_that_calls_tools_needs_no_content(content: dict[str, Any]) -> None:
    messages = decode(messages=[USER, called("a", **content), answer("a")]).messages
    assert messages[1].tool_calls == (ToolCall("functions.weather:0", "weather", "{}"),)
    assert messages[2].tool_call_id == "functions.weather:0"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thinking_of_earlier_answers_is_kept(name: str) -> None:
    assert decode(messages=[USER, {"role": "assistant", "content": "x", name: "hm"}, USER]).messages[
        1
    ].reasoning == ("hm")


def test_foreign_call_ids_are_renamed_and_counted_over_the_conversation() -> None:
    turn = [called("call_1", "call_2"), answer("call_2"), answer("call_1")]
    messages = decode(messages=[USER, *turn, USER, called("call_1"), answer("call_1")]).messages
    assert [c.id for m in messages for c in m.tool_calls] == [f"functions.weather:{i}" for i in range(3)]
    assert [m.tool_call_id for m in messages if m.role == "tool"] == [
        "functions.weather:1",
        "functions.weather:0",
        "functions.weather:2",
    ]


def test_a_conversation_without_its_beginning_goes_on_with_its_numbers() -> None:
    own, foreign = "functions.weather:7", "call_1"
    messages = decode(messages=[USER, called(own, foreign), answer(foreign), answer(own)]).messages
    assert [c.id for c in messages[1].tool_calls] == ["functions.weather:7", "functions.weather:8"]
    assert [m.tool_call_id for m in messages[2:]] == ["functions.weather:8", "functions.weather:7"]


def test_arguments_sent_as_an_object_become_text() -> None:
    message = called("a")
    message["tool_calls"][0]["function"]["arguments"] = {"place": "Bœn"}
    assert decode(messages=[USER, message, answer("a")]).messages[1].tool_calls[0].arguments == (
        '{"place": "Bœn"}'
    )


def test_tools_and_choices() -> None:
    request = decode(tools=[WEATHER], tool_choice="required", thinking=OFF)
    assert request.tools == (
        Tool(name="weather", description="Look outside", parameters=WEATHER["function"]["parameters"]),  # type: ignore[index]
    )
    assert request.tool_choice == "required"
    assert decode(tools=[WEATHER], tool_choice=NAMED, thinking=OFF).tool_choice == "tool:weather"
    assert decode(tools=[WEATHER], tool_choice="none").tool_choice == "none"
    assert decode(tools=[WEATHER], parallel_tool_calls=False).max_parallel_calls == 1
    loose = {"function": {"name": "f", "strict": False, "parameters": None, "description": None}}
    assert decode(tools=[loose]).tools == (Tool(name="f", strict=False),)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[]", "the body is wrong: expected `object`, got `array` (send one JSON object)"),
        (
            b'{"model": "m", "messages": [{"role": "bot"}]}',
            "messages[0].role: invalid value: 'bot' (use system, developer, user, assistant or tool)",
        ),
        (
            b'{"model": "m", "messages": [{"role": "user", "content": [{"type": "audio"}]}]}',
            "messages[0].content[0].type: invalid value: 'audio' (use text, image_url or video_url)",
        ),
        (
            b'{"model": "m", "messages": [], "thinking": {"type": "maybe"}}',
            "thinking.type: invalid value: 'maybe' (use enabled or disabled)",
        ),
        (
            b'{"model": "m", "messages": [], "response_format": {"type": "xml"}}',
            "response_format.type: invalid value: 'xml' (use text, json_object or json_schema)",
        ),
        (
            b'{"model": "m", "messages": [], "seed": "x"}',
            "seed: invalid value: expected `int | null`, got `str` (docs/api.md has the fields)",
        ),
    ],
)
def test_a_wrong_word_is_answered_with_those_there_are(body: bytes, said: str) -> None:
    with pytest.raises(InputError) as caught:
        decode_request(body)
    assert str(caught.value) == said


def test_response_formats() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert decode(response_format={"type": "json_object"}).json_schema == {}
    assert decode(response_format=named).json_schema == schema


def test_partial_mode() -> None:
    last = decode(messages=[USER, {"role": "assistant", "content": "{", "partial": True}]).messages[-1]
    assert last.partial and last.content == "{"


# ---- refused

BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"model": 3}, "model", "expected `str`, got `int`"),
    ({"model": ""}, "model", "must not be empty"),
    ({"messages": "hi"}, "messages", "expected `array`"),
    ({"messages": []}, "messages", "Invalid request: messages must not be empty"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "is required"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "robot"),
    ({"messages": [USER, USER, {"role": "user", "content": 3}]}, "messages[2].content", "got `int`"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content", "must not be empty"),
    ({"messages": [USER, {"role": "assistant", "reasoning_content": "x"}]}, "messages[1].content",
     "the message at position 1 with role 'assistant' must not be empty"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]},
     "messages[0].content[0].text", "text content is empty"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
     "messages[0].content[0].type", "audio"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "https://x/y.png"}]}]},
     "messages[0].content[0].image_url", "only data URLs"),
    ({"messages": [USER, called("a"), USER]}, "messages[1]", "did not have response messages: a"),
    ({"messages": [USER, called("a", "b"), answer("a")]}, "messages[2]", "did not have response messages: b"),
    ({"messages": [USER, called("a", "a")]}, "messages[1].tool_calls[1].id", "occurs twice"),
    ({"messages": [USER, answer("a")]}, "messages[1].tool_call_id", "is no open call"),
    ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id", "is required"),
    ({"messages": [USER | {"tool_call_id": "a"}]}, "messages[0].tool_call_id", "answers no tool call"),
    ({"messages": [USER | {"tool_calls": called("a")["tool_calls"]}]}, "messages[0].tool_calls",
     "calls no tools"),
    ({"messages": [USER | {"partial": True}]}, "messages[0].partial", "only a last assistant message"),
    ({"messages": [{"role": "assistant", "content": "x", "partial": True}, USER]}, "messages[0].partial",
     "only a last assistant message"),
    ({"messages": [USER, {"role": "assistant", "content": "{", "partial": True}],
      "response_format": {"type": "json_object"}}, "response_format", "partial"),
    ({"max_tokens": "5"}, "max_tokens", "expected `int | null`, got `str`"),
    ({"max_tokens": 0}, "max_tokens", "out of range"),
    ({"max_completion_tokens": -1, "max_tokens": 5}, "max_completion_tokens", "out of range"),
    ({"thinking": {}}, "thinking.type", "is required"),
    ({"thinking": {"type": "maybe"}}, "thinking.type", "maybe"),
    ({"thinking": {"type": "enabled", "keep": "some"}}, "thinking.keep", "some"),
    ({"thinking": OFF, "chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs.thinking",
     "contradicts thinking.type"),
    ({"reasoning_effort": 3}, "reasoning_effort", "got `int`"),
    ({"temperature": "hot"}, "temperature", "got `str`"),
    ({"seed": 2**70}, "seed", "64 bits"),
    ({"stop": list("abcdef")}, "stop", "maximum length 5"),
    ({"stop": ["x" * 33]}, "stop[0]", "must not be longer than 32"),
    ({"stop": [""]}, "stop[0]", "empty"),
    ({"functions": []}, "functions", "superseded"),
    ({"stream": "yes"}, "stream", "got `str`"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name", "occurs twice"),
    ({"tools": [{"type": "function", "function": {"name": "1x"}}]}, "tools[0].function.name",
     "function name is"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "is required"),
    ({"tools": [{"type": "builtin_function", "function": {"name": "$code"}}]}, "tools[0].function.name",
     "the only builtin function is $web_search"),
    ({"tools": [{"type": "builtin_function"}]}, "tools[0].function.name", "the only builtin function"),
    ({"tools": [{"type": "function", "function": {"name": "$web_search"}}]}, "tools[0].function.name",
     "function name is invalid"),
    ({"tools": [{"function": {"name": "f", "parameters": {"type": "array"}}}]},
     "tools[0].function.parameters.type", "type object"),
    ({"tools": [{"function": {"name": f"f{i}"}} for i in range(129)]}, "tools", "more than 128"),
    ({"tool_choice": "bogus", "tools": [WEATHER]}, "tool_choice", "unknown choice"),
    ({"tool_choice": "required", "thinking": OFF}, "tool_choice", "there are no tools"),
    ({"tool_choice": "required", "tools": [WEATHER]}, "tool_choice",
     "tool_choice 'required' is incompatible with thinking enabled"),
    ({"tool_choice": {"type": "function", "function": {"name": "weather"}}, "tools": [WEATHER]},
     "tool_choice",
     "tool_choice 'specified' is incompatible with thinking enabled"),
    ({"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": [WEATHER], "thinking": OFF},
     "tool_choice.function.name", "no tool is called 'x'"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is required"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
     "response_format.json_schema.name", "is required"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
     "response_format.json_schema.schema", "is required"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {},
                                                                 "strict": "yes"}}},
     "response_format.json_schema.strict", "got `str`"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "field", "words"), BAD, ids=[str(one[1]) for one in BAD])
def test_a_bad_field_is_named(fields: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        decode(**fields)
    assert caught.value.field == field
    assert words in caught.value.message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"model":"\xff","messages":[]}',
     b'{"x":' * 50_000],
)  # fmt: skip
def test_a_body_that_is_no_request_is_an_input_error(body: bytes) -> None:
    with pytest.raises(InputError):
        decode_request(body)


def test_there_are_only_so_many_messages_and_tools() -> None:
    message = {"role": "user", "content": "x"}
    assert len(decode(messages=[message] * 10_000).messages) == 10_000
    with pytest.raises(InputError, match="more than 10000") as error:
        decode(messages=[message] * 10_001)
    assert error.value.field == "messages"
    tools = [{"type": "function", "function": {"name": f"f{number}"}} for number in range(129)]
    assert len(decode(tools=tools[:128]).tools) == 128
    with pytest.raises(InputError, match="more than 128") as error:
        decode(tools=tools)
    assert error.value.field == "tools"


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def test_what_is_nested_without_end_is_refused_before_anyone_walks_it() -> None:
    calls = [{"id": "c", "function": {"name": "f", "arguments": nested(300)}}]
    for fields, field in (
        ({"tools": [{"function": {"name": "f", "parameters": nested(300)}}]}, "tools[0].function.parameters"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": nested(300)}}},
            "response_format.json_schema.schema",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": calls}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
    ):
        with pytest.raises(InputError, match="nested deeper") as error:
            decode(**fields)
        assert error.value.field == field
    deep = decode(tools=[{"function": {"name": "f", "parameters": nested(30)}}])
    assert declare(deep.tools).count("a?:") == 30


def test_unsupported_is_said_to_be_so() -> None:
    with pytest.raises(UnsupportedInput, match="not served"):
        decode(tools=[{"type": "web_search"}])


# ---- to an upstream endpoint


def test_a_plain_request_carries_only_what_every_endpoint_takes() -> None:
    assert encode_request(decode(max_tokens=9), model="theirs") == {
        "model": "theirs",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": OFF, "temperature": 0.6, "top_p": 0.9, "seed": 3, "stop": ["x"], "max_tokens": 9},
        {"thinking": {"type": "enabled", "keep": "all"}, "prompt_cache_key": "k"},
        {"tools": [WEATHER], "tool_choice": "required", "thinking": OFF, "parallel_tool_calls": False},
        {"tools": [WEATHER], "tool_choice": NAMED, "thinking": OFF},
        {"tools": [{"function": {"name": "f", "strict": False, "parameters": {"type": "object"}}}]},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema",
                             "json_schema": {"name": "a", "schema": {"type": "object"}}}},
        {"messages": [USER, called("a", reasoning_content="hm", content=""), answer("a")]},
        {"messages": [USER, {"role": "assistant", "content": "{", "partial": True, "name": "Bo"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:;base64,A"},
                                                   {"type": "text", "text": "?"}]}]},
    ],
)  # fmt: skip
def test_what_one_perilune_sends_another_reads_as_the_same_request(fields: dict[str, Any]) -> None:
    request = decode(**fields)
    sent = json.dumps(encode_request(request, stream=False)).encode()
    assert decode_request(sent).request == request


def test_missing_thinking_of_a_call_is_sent_as_empty_while_thinking() -> None:
    messages = [USER, called("a"), answer("a")]
    assert encode_request(decode(messages=messages))["messages"][1]["reasoning_content"] == ""
    assert "reasoning_content" not in encode_request(decode(messages=messages, thinking=OFF))["messages"][1]
