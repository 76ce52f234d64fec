"""The messages of a chat call as the template takes them, refusing a conversation that cannot be meant.

Ids of earlier tool calls are rewritten to `functions.NAME:IDX` on the way in: other forms put K2 models off.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from perilune.chat.data_urls import start_of_bytes
from perilune.chat.messages import ImagePart, Message, Part, TextPart, ToolCall, VideoPart
from perilune.chat.template import canonical_calls
from perilune.chat.wire_fields import CallField, ImageField, MediaUrl, MessageField, TextField, VideoField
from perilune.chat.wire_nesting import refuse_deep
from perilune.errors import InputError, UnsupportedInput

MAX_MESSAGES = 10_000
FILE_REFERENCE = "ms://"
"""Before the id of a file that was uploaded."""


def messages_of(fields: list[MessageField]) -> tuple[Message, ...]:
    """Raises InputError naming the message, UnsupportedInput for media that would have to be fetched."""
    if not fields:
        raise InputError(
            "Invalid request: messages must not be empty", field="messages", mend="send at least one"
        )
    if len(fields) > MAX_MESSAGES:
        raise InputError(
            f"more than {MAX_MESSAGES} messages", field="messages", mend="leave out the oldest ones"
        )
    last = len(fields) - 1
    unanswered = _Unanswered()
    messages = []
    for position, field in enumerate(fields):
        if unanswered.ids and field.role != "tool":
            raise unanswered.error(f"messages[{position - 1}]")
        try:
            if field.role == "tool":
                messages.append(_tool_message(field, unanswered))
            else:
                messages.append(_message(field, position, position == last, unanswered))
        except InputError as error:
            error.field = f"messages[{position}].{error.field}"
            raise
    if unanswered.ids:
        raise unanswered.error(f"messages[{last}]")
    return canonical_calls(messages)


def _message(field: MessageField, position: int, is_last: bool, unanswered: _Unanswered) -> Message:
    """Errors name fields within the message, as those of all below do."""
    _refuse_misplaced(field, is_last)
    content = _content(field.content)
    calls: tuple[ToolCall, ...] = ()
    if field.tool_calls:
        calls = tuple([_call(one, f"tool_calls[{n}]", unanswered) for n, one in enumerate(field.tool_calls)])
    partial = bool(field.partial)
    if not content and not calls and not partial:
        raise InputError(
            f"Invalid request: the message at position {position} with role '{field.role}' must not be empty",
            field="content",
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


def _refuse_misplaced(field: MessageField, is_last: bool) -> None:
    if field.tool_call_id is not None:
        raise InputError(
            f"a {field.role} message answers no tool call", field="tool_call_id", mend="use role tool"
        )
    if field.tool_calls and field.role != "assistant":
        raise InputError(
            f"a {field.role} message calls no tools", field="tool_calls", mend="use role assistant"
        )
    if field.partial and (field.role != "assistant" or not is_last or field.tool_calls):
        raise InputError(
            "only a last assistant message without tool calls may be partial",
            field="partial",
            mend="move it to the end or leave partial out",
        )


def _call(call: CallField, where: str, unanswered: _Unanswered) -> ToolCall:
    unanswered.add(call.id, where)
    arguments = call.function.arguments
    refuse_deep(arguments, f"{where}.function.arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(call.id, call.function.name, text)


def _tool_message(field: MessageField, unanswered: _Unanswered) -> Message:
    if field.tool_call_id is None:
        raise InputError("is required", field="tool_call_id", mend="name the call it answers")
    unanswered.answer(field.tool_call_id)
    content = _content(field.content)
    return Message(role="tool", content=content or "", name=field.name, tool_call_id=field.tool_call_id)


class _Unanswered:
    """Calls so far that still lack an answer."""

    def __init__(self) -> None:
        self.ids: dict[str, None] = {}

    def add(self, call_id: str, where: str) -> None:
        if call_id in self.ids:
            raise InputError(f"the id {call_id!r} occurs twice", field=f"{where}.id", mend="ids must differ")
        self.ids[call_id] = None

    def answer(self, call_id: str) -> None:
        if call_id not in self.ids:
            raise InputError(
                f"Invalid request: tool_call_id {call_id!r} is no open call of the message before it",
                field="tool_call_id",
                mend="answer each call once, right after its message",
            )
        del self.ids[call_id]

    def error(self, where: str) -> InputError:
        return InputError(
            "Invalid request: an assistant message with 'tool_calls' must be followed by tool messages "
            "responding to each 'tool_call_id'. The following tool_call_ids did not have response "
            f"messages: {', '.join(self.ids)}",
            field=where,
            mend="add them",
        )


def _content(
    content: str | Sequence[TextField | ImageField | VideoField] | None,
) -> str | tuple[Part, ...] | None:
    """Content as the template takes it; a list of nothing but text becomes one text."""
    if content is None or isinstance(content, str):
        return content
    parts = tuple(_part(part, f"content[{place}]") for place, part in enumerate(content))
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
    if text.startswith("data:"):
        start_of_bytes(text, where)
        return text
    if text.startswith(FILE_REFERENCE):
        return text
    raise UnsupportedInput(
        "only data URLs and uploaded files are read; nothing is fetched from elsewhere",
        field=where,
        mend="send data:<type>;base64,<bytes>, or ms://<id> of a file",
    )
