"""Damaged requests and answers: refused in our words or understood, never anything else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from perilune.chat.messages import Event
from perilune.chat.wire import ChunkDecoder, decode_completion, decode_error, decode_request, encode_request
from perilune.errors import BackendError, InputError

CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
REQUEST = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "x"},
                                     {"type": "image_url", "image_url": {"url": "data:x"}}]},
        {"role": "assistant", "content": "", "reasoning_content": "r", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a", "content": "x"},
    ],
    "tools": [{"type": "function",
               "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "thinking": {"type": "disabled"},
    "chat_template_kwargs": {"thinking": False},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    "stream": True, "stream_options": {"include_usage": True}, "stop": ["a"], "n": 1, "seed": 1,
    "max_tokens": 5, "temperature": 1.0, "top_p": 0.9,
}  # fmt: skip
USAGE = {
    "prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": 1,
    "prompt_tokens_details": {"cached_tokens": 1}, "completion_tokens_details": {"reasoning_tokens": 1},
}  # fmt: skip
ANSWER = {
    "choices": [{"index": 0, "finish_reason": "stop", "usage": USAGE,
                 "delta": {"role": "assistant", "content": "x", "reasoning_content": "y",
                           "tool_calls": [CALL]}}],
    "usage": USAGE, "error": None,
}  # fmt: skip
JUNK: list[Any] = [
    None, True, 0, -1, 2**70, 1.5, 1e300, "", "x", "required", "\0", "☾" * 40, [], {}, [None], [{}], {"a": 1},
    {"type": "text"}, {"function": None},
]  # fmt: skip


def damaged(value: Any, draw: random.Random, rate: float) -> Any:
    if draw.random() < rate:
        return draw.choice(JUNK)
    if isinstance(value, dict):
        return {name: damaged(one, draw, rate) for name, one in value.items() if draw.random() > rate / 2}
    if isinstance(value, list):
        return [damaged(one, draw, rate) for one in value if draw.random() > rate / 2]
    return value


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_a_damaged_request_is_refused_or_understood(rate: float) -> None:
    draw = random.Random(1)
    understood = 0
    for _ in range(500):
        try:
            call = decode_request(json.dumps(damaged(REQUEST, draw, rate)).encode())
        except InputError as refusal:
            assert str(refusal)
            continue
        understood += 1
        again = decode_request(json.dumps(encode_request(call.request)).encode())
        assert [tool.name for tool in again.request.tools] == [tool.name for tool in call.request.tools]
        assert (again.request.thinking, again.request.stop) == (call.request.thinking, call.request.stop)
    assert 0 < understood < 500 or rate > 0.1


def fed(body: bytes) -> list[Event]:
    events: list[Event] = []
    ChunkDecoder().feed(b"data: %b\n\ndata: [DONE]\n\n" % body, events)
    return events


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_a_damaged_answer_is_refused_or_understood(rate: float) -> None:
    readers: tuple[Callable[[bytes], object], ...] = (
        decode_completion,
        fed,
        lambda body: str(decode_error(400, body)),
    )
    draw = random.Random(1)
    for _ in range(500):
        body = json.dumps(damaged(ANSWER, draw, rate)).encode()
        for read in readers:
            try:
                assert read(body)
            except BackendError as refusal:
                assert str(refusal)
