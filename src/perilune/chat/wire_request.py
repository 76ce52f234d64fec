"""From the JSON body of a chat call to a `Request`, refusing what cannot be meant.

Every refusal is an InputError that names the field (`messages[2].content`) and what to send instead.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from perilune.chat.messages import Request
from perilune.chat.wire_characters import half_pair, refuse_nul
from perilune.chat.wire_fields import CallBody
from perilune.chat.wire_messages import messages_of
from perilune.chat.wire_nesting import refuse_deep
from perilune.chat.wire_tools import tool_choice_of, tools_of
from perilune.errors import InputError, UnsupportedInput

MAX_STOPS = 5
MAX_STOP_BYTES = 32
NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logprobs": False,
    "top_logprobs": 0,
}
"""Fields of which only one value is served, with that value."""
CHOICES = (
    (r"messages\[\d+\]\.role", "use system, developer, user, assistant or tool"),
    (r"messages\[\d+\]\.content\[\d+\]\.type", "use text, image_url or video_url"),
    (r"thinking\.type", "use enabled or disabled"),
    (r"thinking\.keep", "use all, or leave it out"),
    (r"response_format\.type", "use text, json_object or json_schema"),
    (r"tool_choice\.type", "use function"),
)
"""Fields that take one of a few words: how their errors say which."""


class ChatCall(msgspec.Struct, frozen=True, kw_only=True):
    """One decoded call: what to ask the model, and how the client wants the answer."""

    request: Request
    stream: bool
    include_usage: bool
    unserved: Mapping[str, Any] = {}
    """Fields of NEUTRAL that ask for something else, as the client sent them, in NEUTRAL's order. The model's
    sampling policy says what becomes of them."""


_body = msgspec.json.Decoder(CallBody)
_neutral_of = operator.attrgetter(*NEUTRAL)


def decode_request(body: bytes) -> ChatCall:
    """Raises InputError naming the field that is wrong, UnsupportedInput for what this build cannot do."""
    call = _parse(body)
    if not call.model:
        raise InputError("must not be empty", field="model", mend="send the id of a model from /v1/models")
    if call.functions is not None or call.function_call is not None:
        raise _superseded(call)
    thinking, keep = _thinking(call)
    tools = tools_of(call.tools) if call.tools else ()
    request = Request(
        model=call.model,
        messages=messages_of(call.messages),
        tools=tools,
        tool_choice=tool_choice_of(call.tool_choice, tools, thinking),
        thinking=thinking,
        keep_thinking=keep,
        max_tokens=_max_tokens(call),
        temperature=call.temperature,
        top_p=call.top_p,
        seed=_seed(call.seed),
        stop=_stops(call.stop),
        json_schema=_json_schema(call),
        prompt_cache_key=call.prompt_cache_key,
        max_parallel_calls=1 if call.parallel_tool_calls is False else None,
    )
    options = call.stream_options
    return ChatCall(
        request=request,
        stream=bool(call.stream),
        include_usage=bool(options and options.include_usage),
        unserved=_unserved(call),
    )


def _parse(body: bytes) -> CallBody:
    try:
        call = _body.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(error) from error
    except RecursionError as error:
        raise InputError("the body is nested too deeply", mend="flatten it") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise half_pair(body) or InputError(
            f"the body is not valid JSON: {error}", mend="send one JSON object"
        ) from error
    refuse_nul(body)
    return call


def _invalid(error: msgspec.ValidationError) -> InputError:
    """msgspec's message split into what and where."""
    text, _, path = str(error).partition(" - at `$")
    field = path.removesuffix("`").removeprefix(".")
    missing = re.fullmatch(r"Object missing required field `(\w+)`", text)
    if missing:
        field = f"{field}.{missing[1]}" if field else missing[1]
        return InputError("is required", field=field, mend="add it")
    if not field:
        return InputError(f"the body is wrong: {text[:1].lower()}{text[1:]}", mend="send one JSON object")
    mend = next((use for name, use in CHOICES if re.fullmatch(name, field)), "docs/api.md has the fields")
    text = text.removeprefix("Invalid enum value ").removeprefix("Invalid value ")
    return InputError(f"invalid value: {text[:1].lower()}{text[1:]}", field=field, mend=mend)


def _unserved(call: CallBody) -> dict[str, Any]:
    values = _neutral_of(call)
    if values.count(None) == len(values):
        return {}
    given = dict(zip(NEUTRAL, values, strict=True))
    return {name: value for name, value in given.items() if value is not None and value != NEUTRAL[name]}


def _superseded(call: CallBody) -> UnsupportedInput:
    name = "functions" if call.functions is not None else "function_call"
    return UnsupportedInput("superseded", field=name, mend="use tools and tool_choice")


# ---- thinking


def _thinking(call: CallBody) -> tuple[bool, bool]:
    """Whether to think, and whether earlier thinking stays. Several spellings; they may not disagree."""
    if call.thinking is None and call.chat_template_kwargs is None:
        return call.reasoning_effort != "none", False
    said: dict[str, bool] = {}
    keep = False
    if call.thinking is not None:
        said["thinking.type"] = call.thinking.type == "enabled"
        keep = call.thinking.keep == "all"
    if (kwargs := call.chat_template_kwargs) is not None:
        keep = keep or bool(kwargs.preserve_thinking)
        for name in ("thinking", "enable_thinking"):
            if (value := getattr(kwargs, name)) is not None:
                said[f"chat_template_kwargs.{name}"] = value
    if len(set(said.values())) > 1:
        raise InputError(
            f"contradicts {next(iter(said))}", field=list(said)[-1], mend="send only one of them"
        )
    if said:
        return next(iter(said.values())), keep
    return call.reasoning_effort != "none", keep


# ---- the rest


def _max_tokens(call: CallBody) -> int | None:
    """`max_tokens` is the older name; where both are sent the newer one counts."""
    name = "max_completion_tokens" if call.max_completion_tokens is not None else "max_tokens"
    value: int | None = getattr(call, name)
    if value is not None and not 1 <= value < 2**31:
        raise InputError(f"{value} is out of range", field=name, mend="send at least 1")
    return value


def _seed(value: int | None) -> int | None:
    if value is not None and not -(2**63) <= value < 2**63:
        raise InputError("does not fit 64 bits", field="seed", mend="send a smaller number")
    return value


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MAX_STOPS:
        raise InputError(f"maximum length {MAX_STOPS}, got {len(stops)}", field="stop", mend="send fewer")
    for place, text in enumerate(stops):
        if not text or len(text.encode()) > MAX_STOP_BYTES:
            problem = (
                f"must not be longer than {MAX_STOP_BYTES} bytes" if text else "an empty string stops nothing"
            )
            raise InputError(problem, field=f"stop[{place}]", mend="change it or leave it out")
    return stops


def _json_schema(call: CallBody) -> dict[str, object] | None:
    form = call.response_format
    if form is None or form.type == "text":
        return None
    if any(message.partial for message in call.messages):
        raise InputError(
            "JSON answers cannot go on from a partial message",
            field="response_format",
            mend="leave out one of the two",
        )
    if form.type == "json_object":
        return {}
    if form.json_schema is None:
        raise InputError("is required", field="response_format.json_schema", mend="add it")
    refuse_deep(form.json_schema.schema, "response_format.json_schema.schema")
    return form.json_schema.schema
