"""The answer side of the OpenAI dialect: what we stream and what we understand of others' streams."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perilune.chat.messages import (
    Completion,
    Event,
    Finished,
    Message,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from perilune.chat.wire import (
    ChunkDecoder,
    ChunkEncoder,
    completion_events,
    decode_completion,
    decode_error,
    encode_completion,
    encode_error,
    encode_error_event,
)
from perilune.errors import (
    BackendAuth,
    BackendError,
    BackendFiltered,
    BackendInterrupted,
    BackendOutOfQuota,
    BackendProtocol,
    BackendRateLimited,
    BackendRefused,
    BackendUnreachable,
    InputError,
)

USAGE = Usage(prompt_tokens=19, cached_tokens=10, completion_tokens=21, reasoning_tokens=5)
EVENTS: list[Event] = [
    ThinkingDelta("Hm, “é” ☾\n"),
    TextDelta("Two "),
    TextDelta("calls.\r\n"),
    ToolCallStarted(0, "functions.f:0", "f"),
    ToolCallDelta(0, '{"a":'),
    ToolCallDelta(0, " 1}"),
    ToolCallStarted(1, "functions.g:1", "g"),
    ToolCallDelta(1, "{}"),
    Finished("tool_calls", USAGE),
]


def stream(events: list[Event], include_usage: bool = False) -> bytes:
    encoder = ChunkEncoder(id="c-1", model="m", created=7, include_usage=include_usage)
    return b"".join(encoder.encode(event) for event in events)


def chunks(data: bytes) -> list[dict[str, Any]]:
    frames = data.decode().split("\n\n")
    assert frames.pop() == ""
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def read(data: bytes, size: int | None = None) -> list[Event]:
    decoder = ChunkDecoder()
    events: list[Event] = []
    step = size or len(data) or 1
    for start in range(0, len(data), step):
        decoder.feed(data[start : start + step], events)
    decoder.close(events)
    return events


def fed(decoder: ChunkDecoder, data: bytes) -> list[Event]:
    events: list[Event] = []
    decoder.feed(data, events)
    return events


def sse(*bodies: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(body).encode() + b"\n\n" for body in bodies) + b"data: [DONE]\n\n"


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


# ---- what we send


def test_a_stream_names_the_role_once_and_closes_with_the_usage() -> None:
    sent = chunks(stream(EVENTS))
    assert all((one["id"], one["created"], one["model"]) == ("c-1", 7, "m") for one in sent)
    deltas = [one["choices"][0]["delta"] for one in sent]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert not any("role" in one for one in deltas[1:])
    assert [next(iter(one), "") for one in deltas[1:]] == [
        "reasoning_content", "content", "content", *["tool_calls"] * 5, "",
    ]  # fmt: skip
    last = sent[-1]["choices"][0]
    assert last["finish_reason"] == "tool_calls" and last["delta"] == {}
    assert last["usage"]["cached_tokens"] == last["usage"]["prompt_tokens_details"]["cached_tokens"] == 10
    assert last["usage"]["total_tokens"] == 40
    assert "usage" not in sent[0]


def test_only_the_first_fragment_of_a_call_has_its_name() -> None:
    calls = [one["choices"][0]["delta"].get("tool_calls") for one in chunks(stream(EVENTS))]
    fragments = [call[0] for call in calls if call]
    first = {
        "index": 0,
        "id": "functions.f:0",
        "type": "function",
        "function": {"name": "f", "arguments": ""},
    }
    assert fragments[0] == first
    assert fragments[1] == {"index": 0, "function": {"arguments": '{"a":'}}


def test_usage_stands_in_its_own_chunk_when_asked_for() -> None:
    sent = chunks(stream(EVENTS, include_usage=True))
    assert sent[-1]["choices"] == [] and sent[-1]["usage"]["prompt_tokens"] == 19
    assert all(one["usage"] is None for one in sent[:-1])


def test_an_empty_answer_still_names_the_role() -> None:
    assert chunks(stream([Finished("length", Usage())]))[0]["choices"][0]["delta"]["role"] == "assistant"


def test_a_whole_answer() -> None:
    message = Message(
        role="assistant", content="x", reasoning="hm", tool_calls=(ToolCall("functions.f:0", "f", "{}"),)
    )
    completion = Completion(message=message, finish_reason="tool_calls", usage=USAGE)
    body = encode_completion(completion, id="c", model="m", created=7)
    told = json.loads(body)
    assert told["object"] == "chat.completion" and told["choices"][0]["message"]["reasoning_content"] == "hm"
    assert decode_completion(body) == completion
    instant = Completion(message=Message(role="assistant", content="x"), finish_reason="stop", usage=USAGE)
    told = json.loads(encode_completion(instant, id="c", model="m", created=7))
    assert "reasoning_content" not in told["choices"][0]["message"]


def test_errors_have_a_message_and_a_type() -> None:
    error = InputError("is wrong", field="messages[2].content", mend="send text")
    told = {
        "error": {"message": "messages[2].content: is wrong (send text)", "type": "invalid_request_error"}
    }
    assert json.loads(encode_error(error)) == told
    with pytest.raises(BackendError, match="is wrong"):
        read(stream(EVENTS[:2]) + encode_error_event(error))


# ---- what we understand


def other_ways(data: bytes, line_end: bytes) -> bytes:
    """The same stream as other servers write it: comments between and within events, other fields, no space
    after the colon, one event over two lines of data, letters as themselves."""
    events = [json.loads(frame[6:]) if frame[6:7] == b"{" else None for frame in data.split(b"\n\n")[:-1]]
    shapes = (
        "data: {}\n\n",
        ": keep-alive\n\ndata:{}\n\n",
        "event: message\n: within ☾\nid: 7\ndata: {}\n\n",
        "retry: 100\n\n\ndata: {}\n:\n\n",
    )
    text = ""
    for number, event in enumerate(events):
        body = json.dumps(event, ensure_ascii=False) if event is not None else "[DONE]"
        if number == 3:
            body = body.replace(', "choices"', ',\ndata: "choices"')
            assert "\n" in body
        text += shapes[number % len(shapes)].format(body)
    return text.encode().replace(b"\n", line_end)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_any_split_of_the_bytes_gives_the_same_events(line_end: bytes) -> None:
    """Cut at every byte offset, and into pieces of every small size."""
    data = other_ways(stream(EVENTS, include_usage=True), line_end)
    for size in (*range(1, 20), 64, len(data)):
        assert read(data, size) == EVENTS
    for cut in range(len(data) + 1):
        decoder, events = ChunkDecoder(), list[Event]()
        decoder.feed(data[:cut], events)
        decoder.feed(data[cut:], events)
        decoder.close(events)
        assert events == EVENTS


@pytest.mark.parametrize("end", [b"", encode_error_event(InputError("is wrong")), b"data: {no\n\n"])
def test_any_split_of_a_stream_that_breaks_gives_the_same_events_before(end: bytes) -> None:
    data = stream(EVENTS[:3]) + end
    for cut in range(len(data) + 1):
        decoder, events = ChunkDecoder(), list[Event]()
        with pytest.raises(BackendError):
            decoder.feed(data[:cut], events)
            decoder.feed(data[cut:], events)
            decoder.close(events)
        assert events == EVENTS[:3]


def test_events_arrive_with_the_byte_that_completes_them() -> None:
    decoder = ChunkDecoder()
    data = sse(delta(content="a"))[: -len(b"data: [DONE]\n\n")]
    assert fed(decoder, data[:-1]) == []
    assert fed(decoder, data[-1:]) == [TextDelta("a")]


@pytest.mark.parametrize(
    "end",
    [
        delta("content_filter", content="b"),
        delta(content="b", tool_calls=[3]),
        delta("stop", content="b", tool_calls=[{"index": 0, "id": "a", "function": {"arguments": "{}"}}]),
    ],
)
def test_of_a_chunk_that_cannot_be_read_nothing_is_an_event(end: dict[str, Any]) -> None:
    events: list[Event] = []
    with pytest.raises(BackendError):
        ChunkDecoder().feed(sse(delta(content="a"), end), events)
    assert events == [TextDelta("a")]


TEXT = b'{"choices":[{"delta":{"content":"a"}}]}'


@pytest.mark.parametrize(
    "data",
    [
        b'data: {"usage":\n\ndata: {"choices":[]}}' + TEXT + b"\n\n",
        b"data: " + TEXT + TEXT + b'\n\ndata: {"choices":\n\ndata: []}\n\n',
        b"data: " + TEXT + b"," + TEXT + b"\n\n",
        b"data: " + TEXT.replace(b":", b":\r", 1) + b"\n\n",
    ],
)
def test_no_object_is_read_over_the_end_of_its_line(data: bytes) -> None:
    for step in (len(data), 1):
        with pytest.raises(BackendProtocol):
            read(data, step)


def test_a_line_that_is_no_data_is_none_even_if_it_reads_like_it() -> None:
    data = b"data: " + TEXT + b"\n" + TEXT + b"\n\ndata: " + TEXT + b"\n\n"
    for one in (data, data.replace(b"\n", b"\r\n")):
        assert fed(ChunkDecoder(), one) == [TextDelta("a"), TextDelta("a")]


def test_thinking_under_its_other_name() -> None:
    assert read(sse(delta(reasoning="hm"), delta("stop", content="x")))[:2] == [
        ThinkingDelta("hm"),
        TextDelta("x"),
    ]


CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
WHOLE = [ToolCallStarted(0, "a", "f"), ToolCallDelta(0, "{}"), Finished("tool_calls", Usage())]


@pytest.mark.parametrize(
    ("bodies", "events"),
    [
        ([delta("tool_calls", tool_calls=[CALL])], WHOLE),
        ([delta("stop", tool_calls=[CALL])], WHOLE),
        ([delta("function_call", tool_calls=[CALL | {"index": None}])], WHOLE),
        ([delta(tool_calls=[CALL | {"index": 1}]), delta("tool_calls")], WHOLE),
        ([delta(tool_calls=[{"index": 0, "id": "a", "function": {"arguments": "{"}}]),
          delta("tool_calls", tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "}"}}])],
         WHOLE),
        ([delta(tool_calls=[CALL | {"function": {"name": "f", "arguments": None}}]),
          delta("tool_calls", tool_calls=[CALL])], WHOLE),
        ([delta("tool_calls", tool_calls=[CALL | {"function": {"name": "f", "arguments": {}}}])], WHOLE),
        ([delta("tool_calls", tool_calls=[{"function": {"name": "f", "arguments": "{}"}},
                                          {"function": {"name": "f", "arguments": "{}"}}])],
         [ToolCallStarted(0, "functions.f:0", "f"), ToolCallDelta(0, "{}"),
          ToolCallStarted(1, "functions.f:1", "f"), ToolCallDelta(1, "{}"), Finished("tool_calls", Usage())]),
    ],
)  # fmt: skip
def test_tool_calls_of_every_engine(bodies: list[Any], events: list[Event]) -> None:
    assert read(sse(*bodies)) == events


def test_calls_without_ids_are_numbered_over_the_conversation() -> None:
    decoder = ChunkDecoder(first_call=4)
    body = sse(delta("tool_calls", tool_calls=[{"index": 0, "function": {"name": "f"}}]))
    assert fed(decoder, body)[0] == ToolCallStarted(0, "functions.f:4", "f")


TOLD = {"prompt_tokens": 9, "completion_tokens": 3}


@pytest.mark.parametrize(
    ("bodies", "cached"),
    [
        ([delta("stop"), {"choices": [], "usage": TOLD | {"cached_tokens": 4}}], 4),
        ([delta("stop") | {"usage": TOLD | {"prompt_tokens_details": {"cached_tokens": 4}}}], 4),
        ([{"choices": [{"delta": {}, "finish_reason": "stop", "usage": TOLD | {"cached_tokens": 4}}]}], 4),
        (
            [delta("stop") | {"usage": TOLD | {"prompt_tokens_details": None, "prompt_cache_hit_tokens": 4}}],
            4,
        ),
        ([delta("stop") | {"usage": TOLD | {"cached_tokens": 99}}], 9),
        ([delta("stop") | {"usage": TOLD}, delta() | {"usage": None}], 0),
    ],
)
def test_usage_is_found_wherever_it_stands(bodies: list[Any], cached: int) -> None:
    usage = Usage(prompt_tokens=9, completion_tokens=3, cached_tokens=cached)
    assert read(sse(*bodies)) == [Finished("stop", usage)]


def test_whether_usage_was_reported_is_known() -> None:
    silent, telling = ChunkDecoder(), ChunkDecoder()
    fed(silent, sse(delta("stop")))
    fed(telling, sse(delta("stop") | {"usage": TOLD}))
    assert (silent.usage_seen, telling.usage_seen) == (False, True)


def test_a_stream_without_done_is_complete_once_it_told_why_it_ended() -> None:
    data = sse(delta(content="x"), delta("length"))[: -len(b"data: [DONE]\n\n")]
    assert read(data) == [TextDelta("x"), Finished("length", Usage())]
    assert read(sse(delta("stop"))[:-2]) == [Finished("stop", Usage())]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        sse(delta(content="x"))[: -len(b"data: [DONE]\n\n")],
        sse(delta(content="x")),
        sse(delta(content="x"), delta("stop"))[:-40],
    ],
)
def test_a_cut_stream_is_interrupted(data: bytes) -> None:
    with pytest.raises(BackendInterrupted):
        read(data)


@pytest.mark.parametrize(
    "data",
    [
        b"data: {oops\n\n",
        b"data: [1]\n\n",
        sse({"choices": {"a": 1}}),
        sse({"choices": [3]}),
        sse(delta(content=3)),
        sse(delta(tool_calls=[3])),
        sse(delta(tool_calls=[{"index": 0, "function": {"arguments": 3}}])),
        sse(delta("stop", tool_calls=[{"index": 0, "id": "a", "function": {"arguments": "{}"}}])),
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
)
def test_what_is_not_openai_shaped_is_said_to_be_so(data: bytes) -> None:
    with pytest.raises(BackendProtocol):
        fed(ChunkDecoder(), data)


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices":[]}', b'{"choices":[{"message":{}}]}', b"3"])
def test_a_body_that_is_no_answer(body: bytes) -> None:
    with pytest.raises(BackendProtocol):
        decode_completion(body)


def test_errors_inside_a_200() -> None:
    with pytest.raises(BackendError, match="out of memory"):
        read(sse({"error": {"message": "out of memory"}}))
    with pytest.raises(BackendRateLimited):
        read(sse({"error": {"message": "slow down", "code": 429}}))
    with pytest.raises(BackendFiltered, match="considered high risk"):
        read(sse(delta("content_filter")))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BackendRefused), (401, BackendAuth), (403, BackendAuth), (404, BackendRefused),
        (429, BackendRateLimited), (500, BackendError), (503, BackendUnreachable), (504, BackendUnreachable),
    ],
)  # fmt: skip
def test_http_errors_keep_the_endpoints_words(status: int, kind: type[BackendError]) -> None:
    error = decode_error(status, b'{"error": {"message": "because"}}', 3.0)
    assert type(error) is kind and "because" in error.message
    for body in (b"<html>because</html>", b'{"detail": "because"}', b'{"error": "because"}', b'"because"'):
        assert "because" in decode_error(status, body).message
    assert decode_error(status, b"").message


def test_a_rate_limit_keeps_its_waiting_time() -> None:
    error = decode_error(429, b"", 2.5)
    assert isinstance(error, BackendRateLimited) and error.retry_after_s == 2.5


def test_refusals_of_a_kind_of_their_own() -> None:
    filtered = decode_error(400, b'{"error": {"type": "content_filter", "message": "because"}}')
    assert isinstance(filtered, BackendFiltered) and "considered high risk: because" in filtered.message
    assert json.loads(encode_error(filtered))["error"]["type"] == "content_filter"
    for kind in (b"exceeded_current_quota_error", b"insufficient_quota"):
        used_up = decode_error(429, b'{"error": {"type": "%b", "message": "because"}}' % kind)
        assert isinstance(used_up, BackendOutOfQuota) and "because" in used_up.message


def test_a_whole_answer_as_events() -> None:
    message = Message(
        role="assistant", content="x", reasoning="hm", tool_calls=(ToolCall("functions.f:0", "f", "{}"),)
    )
    completion = Completion(message=message, finish_reason="tool_calls", usage=USAGE)
    assert read(stream(completion_events(completion))) == completion_events(completion)
