"""From the JSON body of a chat call to a `Request`, refusing what cannot be meant.

Every refusal is an InputError that names the field (`messages[2].content`) and what to send instead.
Ids of earlier tool calls are rewritten to `functions.NAME:IDX` on the way in: other forms put K2 models off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import msgspec

from perilune.chat.messages import ImagePart, Message, Part, Request, TextPart, Tool, ToolCall, VideoPart
from perilune.chat.web_search import TOOL, WEB_SEARCH
from perilune.chat.wire_characters import half_pair, refuse_nul
from perilune.chat.wire_fields import (
    CallBody,
    ChoiceField,
    ImageField,
    MediaUrl,
    MessageField,
    TextField,
    ToolField,
    VideoField,
)
from perilune.errors import InputError, UnsupportedInput

MAX_TOOLS = 128
MAX_STOPS = 5
MAX_STOP_BYTES = 32
MAX_DEPTH = 64
FILE_REFERENCE = "ms://"
"""Before the id of a file that was uploaded."""
"""Objects and lists within each other, in schemas and arguments. The hosted API takes schemas 30 deep."""
TOOL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_-]{0,63}")
ROLES = "system, developer, user, assistant or tool"
THINKING_OFF = 'send "thinking": {"type": "disabled"} with it'


class ChatCall(msgspec.Struct, frozen=True, kw_only=True):
    """One decoded call: what to ask the model, and how the client wants the answer."""

    request: Request
    stream: bool
    include_usage: bool


_body = msgspec.json.Decoder(CallBody)


def decode_request(body: bytes) -> ChatCall:
    """Raises InputError naming the field that is wrong, UnsupportedInput for what this build cannot do."""
    call = _parse(body)
    if not call.model:
        raise InputError("must not be empty", field="model", mend="send the id of a model from /v1/models")
    _refuse_unsupported(call)
    thinking, keep = _thinking(call)
    tools = _tools(call.tools or [])
    request = Request(
        model=call.model,
        messages=_messages(call.messages),
        tools=tools,
        tool_choice=_tool_choice(call.tool_choice, tools, thinking),
        thinking=thinking,
        keep_thinking=keep,
        max_tokens=_max_tokens(call),
        temperature=_within(call.temperature, "temperature", 0.0, 2.0),
        top_p=_top_p(call.top_p),
        seed=_seed(call.seed),
        stop=_stops(call.stop),
        json_schema=_json_schema(call),
        prompt_cache_key=call.prompt_cache_key,
        max_parallel_calls=1 if call.parallel_tool_calls is False else None,
    )
    options = call.stream_options
    return ChatCall(
        request=request, stream=bool(call.stream), include_usage=bool(options and options.include_usage)
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
    mend = f"use {ROLES}" if field.endswith(".role") else "docs/api.md has the fields"
    return InputError(f"invalid value: {text[:1].lower()}{text[1:]}", field=field or None, mend=mend)


def _refuse_unsupported(call: CallBody) -> None:
    for name in ("n", "presence_penalty", "frequency_penalty"):
        allowed = 1 if name == "n" else 0
        if getattr(call, name) not in (None, allowed):
            raise InputError(
                f"invalid {name}: only {allowed} is allowed for this model", field=name, mend="leave it out"
            )
    if call.logprobs or call.top_logprobs:
        raise UnsupportedInput("log probabilities are not served", field="logprobs", mend="leave it out")
    for name in ("functions", "function_call"):
        if getattr(call, name) is not None:
            raise UnsupportedInput("superseded", field=name, mend="use tools and tool_choice")


# ---- thinking


def _thinking(call: CallBody) -> tuple[bool, bool]:
    """Whether to think, and whether earlier thinking stays. Several spellings; they may not disagree."""
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


# ---- messages


def _messages(fields: list[MessageField]) -> tuple[Message, ...]:
    if not fields:
        raise InputError(
            "Invalid request: messages must not be empty", field="messages", mend="send at least one"
        )
    history = _History()
    messages = []
    for position, field in enumerate(fields):
        is_last = position == len(fields) - 1
        messages.append(_message(field, f"messages[{position}]", position, is_last, history))
    history.expect_answered(f"messages[{len(fields) - 1}]")
    return tuple(messages)


def _message(field: MessageField, where: str, position: int, is_last: bool, history: _History) -> Message:
    if field.role == "tool":
        return _tool_message(field, where, history)
    history.expect_answered(f"messages[{position - 1}]")
    _refuse_misplaced(field, where, is_last)
    content = _content(field.content, f"{where}.content")
    calls = history.add_calls(field, where)
    partial = bool(field.partial)
    if not content and not calls and not partial:
        raise InputError(
            f"Invalid request: the message at position {position} with role '{field.role}' must not be empty",
            field=f"{where}.content",
            mend="send some text",
        )
    reasoning = field.reasoning_content if field.reasoning_content is not None else field.reasoning
    return Message(
        role="system" if field.role == "developer" else field.role,
        content=content,
        name=field.name,
        reasoning=reasoning if field.role == "assistant" else None,
        tool_calls=calls,
        partial=partial,
    )


def _refuse_misplaced(field: MessageField, where: str, is_last: bool) -> None:
    if field.tool_call_id is not None:
        raise InputError(
            f"a {field.role} message answers no tool call",
            field=f"{where}.tool_call_id",
            mend="use role tool",
        )
    if field.tool_calls and field.role != "assistant":
        raise InputError(
            f"a {field.role} message calls no tools", field=f"{where}.tool_calls", mend="use role assistant"
        )
    if field.partial and (field.role != "assistant" or not is_last or field.tool_calls):
        raise InputError(
            "only a last assistant message without tool calls may be partial",
            field=f"{where}.partial",
            mend="move it to the end or leave partial out",
        )


def _tool_message(field: MessageField, where: str, history: _History) -> Message:
    if field.tool_call_id is None:
        raise InputError("is required", field=f"{where}.tool_call_id", mend="name the call it answers")
    call = history.answer(field.tool_call_id, where)
    content = _content(field.content, f"{where}.content")
    return Message(role="tool", content=content or "", name=field.name, tool_call_id=call)


class _History:
    """Tool calls on their way through the conversation: canonical ids, and which still lack an answer."""

    def __init__(self) -> None:
        self._count = 0
        self._open: dict[str, str] = {}

    def add_calls(self, field: MessageField, where: str) -> tuple[ToolCall, ...]:
        calls = []
        for place, call in enumerate(field.tool_calls or ()):
            if call.id in self._open:
                raise InputError(
                    f"the id {call.id!r} occurs twice",
                    field=f"{where}.tool_calls[{place}].id",
                    mend="ids must differ",
                )
            canonical = f"functions.{call.function.name}:{self._count}"
            self._count += 1
            self._open[call.id] = canonical
            arguments = call.function.arguments
            _check_depth(arguments, f"{where}.tool_calls[{place}].function.arguments")
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            calls.append(ToolCall(canonical, call.function.name, text))
        return tuple(calls)

    def answer(self, call_id: str, where: str) -> str:
        """The canonical id of an open call, which is now answered."""
        if call_id not in self._open:
            raise InputError(
                f"Invalid request: tool_call_id {call_id!r} is no open call of the message before it",
                field=f"{where}.tool_call_id",
                mend="answer each call once, right after its message",
            )
        return self._open.pop(call_id)

    def expect_answered(self, where: str) -> None:
        if self._open:
            raise InputError(
                "Invalid request: an assistant message with 'tool_calls' must be followed by tool messages "
                "responding to each 'tool_call_id'. The following tool_call_ids did not have response "
                f"messages: {', '.join(self._open)}",
                field=where,
                mend="add them",
            )


def _content(
    content: str | Sequence[TextField | ImageField | VideoField] | None, where: str
) -> str | tuple[Part, ...] | None:
    """Content as the template takes it; a list of nothing but text becomes one text."""
    if content is None or isinstance(content, str):
        return content
    parts = tuple(_part(part, f"{where}[{place}]") for place, part in enumerate(content))
    if all(isinstance(part, TextPart) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, TextPart))
    return parts


def _part(part: TextField | ImageField | VideoField, where: str) -> Part:
    match part:
        case TextField(text=text):
            if not text:
                raise InputError(
                    "text content is empty",
                    field=f"{where}.text",
                    mend="send some text or leave the part out",
                )
            return TextPart(text)
        case ImageField(image_url=url):
            return ImagePart(_media_url(url, f"{where}.image_url"))
        case VideoField(video_url=url):
            return VideoPart(_media_url(url, f"{where}.video_url"))


def _media_url(url: MediaUrl | str, where: str) -> str:
    text = url if isinstance(url, str) else url.url
    if text.startswith(("data:", FILE_REFERENCE)):
        return text
    raise UnsupportedInput(
        "only data URLs and uploaded files are read; nothing is fetched from elsewhere",
        field=where,
        mend="send data:<type>;base64,<bytes>, or ms://<id> of a file",
    )


# ---- tools


def _tools(fields: list[ToolField]) -> tuple[Tool, ...]:
    if len(fields) > MAX_TOOLS:
        raise InputError(f"more than {MAX_TOOLS} tools", field="tools", mend="send fewer")
    tools = tuple(_tool(field, f"tools[{place}]") for place, field in enumerate(fields))
    names = [tool.name for tool in tools]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InputError(
                f"the name {name!r} occurs twice", field=f"tools[{place}].function.name", mend="rename one"
            )
    return tools


def _tool(field: ToolField, where: str) -> Tool:
    if field.type == "builtin_function":
        return _builtin(field, where)
    if field.type != "function":
        raise UnsupportedInput(
            f"tools of type {field.type!r} are not served", field=f"{where}.type", mend="use type function"
        )
    function = field.function
    if function is None:
        raise InputError("is required", field=f"{where}.function", mend="add it")
    if not TOOL_NAME.fullmatch(function.name):
        raise InputError(
            "Invalid request: function name is invalid, must start with a letter and can contain letters, "
            "numbers, underscores, and dashes",
            field=f"{where}.function.name",
            mend="use at most 64 of them",
        )
    parameters = function.parameters or {}
    if parameters.get("type", "object") != "object":
        raise InputError(
            "must be a schema of type object",
            field=f"{where}.function.parameters.type",
            mend="wrap the arguments in an object",
        )
    _check_depth(parameters, f"{where}.function.parameters")
    return Tool(
        name=function.name,
        description=function.description or "",
        parameters=parameters,
        strict=function.strict is not False,
    )


def _builtin(field: ToolField, where: str) -> Tool:
    """A tool of the server's own. Only its name is the client's to say."""
    if field.function is None or field.function.name != WEB_SEARCH:
        raise InputError(
            f"the only builtin function is {WEB_SEARCH}", field=f"{where}.function.name", mend="name that"
        )
    return msgspec.structs.replace(TOOL, name=WEB_SEARCH)


def _tool_choice(choice: str | ChoiceField | None, tools: tuple[Tool, ...], thinking: bool) -> str:
    if choice is None or choice in ("auto", "none"):
        return choice if isinstance(choice, str) else "auto"
    if isinstance(choice, str) and choice != "required":
        raise InputError(
            f"unknown choice {choice!r}",
            field="tool_choice",
            mend="send auto, none, required, or an object that names a function",
        )
    if not tools:
        raise InputError("demands a call, but there are no tools", field="tool_choice", mend="send tools")
    if thinking:
        kind = choice if isinstance(choice, str) else "specified"
        raise InputError(
            f"tool_choice '{kind}' is incompatible with thinking enabled",
            field="tool_choice",
            mend=THINKING_OFF,
        )
    if isinstance(choice, str):
        return choice
    name = choice.function.name
    if name not in {tool.name for tool in tools}:
        raise InputError(
            f"no tool is called {name!r}", field="tool_choice.function.name", mend="name one of tools"
        )
    return f"tool:{name}"


# ---- the rest


def _max_tokens(call: CallBody) -> int | None:
    """`max_tokens` is the older name; where both are sent the newer one counts."""
    name = "max_completion_tokens" if call.max_completion_tokens is not None else "max_tokens"
    value: int | None = getattr(call, name)
    if value is not None and not 1 <= value < 2**31:
        raise InputError(f"{value} is out of range", field=name, mend="send at least 1")
    return value


def _within(value: float | None, name: str, least: float, most: float) -> float | None:
    if value is not None and not least <= value <= most:
        raise InputError(f"{value:g} is out of range", field=name, mend=f"send {least:g} to {most:g}")
    return value


def _top_p(value: float | None) -> float | None:
    if value == 0:
        raise InputError("0 leaves nothing to choose from", field="top_p", mend="send more than 0")
    return _within(value, "top_p", 0.0, 1.0)


def _seed(value: int | None) -> int | None:
    if value is not None and not -(2**63) <= value < 2**63:
        raise InputError("does not fit 64 bits", field="seed", mend="send a smaller number")
    return value


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
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
    _check_depth(form.json_schema.schema, "response_format.json_schema.schema")
    return form.json_schema.schema


def _check_depth(value: object, where: str) -> None:
    """Whoever walks the value later may do so by recursion."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            for inner in (
                value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            )
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise InputError(f"is nested deeper than {MAX_DEPTH}", field=where, mend="flatten it")
