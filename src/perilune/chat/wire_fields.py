"""The shapes of a chat request as JSON. Fields that are not here are accepted and ignored."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class MediaUrl(msgspec.Struct):
    url: str


class TextField(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ImageField(msgspec.Struct, tag_field="type", tag="image_url"):
    image_url: MediaUrl | str


class VideoField(msgspec.Struct, tag_field="type", tag="video_url"):
    video_url: MediaUrl | str


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] = ""


class CallField(msgspec.Struct):
    id: str
    function: CalledFunction


class MessageField(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextField | ImageField | VideoField] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """What some proxies call `reasoning_content`."""
    tool_calls: list[CallField] | None = None
    tool_call_id: str | None = None
    partial: bool | None = None


class FunctionField(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolField(msgspec.Struct):
    function: FunctionField | None = None
    type: str = "function"


class ChosenFunction(msgspec.Struct):
    name: str


class ChoiceField(msgspec.Struct):
    function: ChosenFunction
    type: Literal["function", "builtin_function"] = "function"


class ThinkingField(msgspec.Struct):
    type: Literal["enabled", "disabled"]
    keep: Literal["all"] | None = None


class TemplateField(msgspec.Struct):
    """`chat_template_kwargs`: how open-source servers spell the same switches."""

    thinking: bool | None = None
    enable_thinking: bool | None = None
    preserve_thinking: bool | None = None


class SchemaField(msgspec.Struct):
    name: str
    schema: dict[str, Any]
    strict: bool | None = None


class FormatField(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaField | None = None


class StreamField(msgspec.Struct):
    include_usage: bool | None = None


class CallBody(msgspec.Struct):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: list[MessageField]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    thinking: ThinkingField | None = None
    chat_template_kwargs: TemplateField | None = None
    reasoning_effort: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    response_format: FormatField | None = None
    tools: list[ToolField] | None = None
    tool_choice: str | ChoiceField | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    stream: bool | None = None
    stream_options: StreamField | None = None
    prompt_cache_key: str | None = None
