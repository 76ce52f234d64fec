"""From a `Request` to the JSON body that other OpenAI-compatible endpoints take.

What is the default everywhere is left out, so that endpoints which refuse unknown fields work too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perilune.chat.messages import ImagePart, Message, Part, Request, TextPart, Tool, VideoPart

OPTIONS = ("max_tokens", "temperature", "top_p", "seed", "prompt_cache_key")
"""What is sent under its own name where it was asked for."""


def encode_request(request: Request, model: str | None = None, stream: bool = True) -> dict[str, Any]:
    """The body, for `model` at that endpoint. `argument_choices`, `cache_salt` and
    `thinking_budget` are ours and stay here."""
    body: dict[str, Any] = {
        "model": model or request.model,
        "messages": [_message(message, request.thinking) for message in request.messages],
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        body["tool_choice"] = _tool_choice(request.tool_choice)
        if request.max_parallel_calls == 1:
            body["parallel_tool_calls"] = False
    if not request.thinking or request.keep_thinking:
        body |= _thinking(request)
    for name in OPTIONS:
        if (value := getattr(request, name)) is not None:
            body[name] = value
    if request.stop:
        body["stop"] = list(request.stop)
    if request.json_schema is not None:
        body["response_format"] = _response_format(request.json_schema)
    return body


def _thinking(request: Request) -> dict[str, Any]:
    """Both spellings, Kimi's and the open-source servers': each ignores the other's."""
    if not request.thinking:
        return {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"thinking": False}}
    return {
        "thinking": {"type": "enabled", "keep": "all"},
        "chat_template_kwargs": {"thinking": True, "preserve_thinking": True},
    }


def _message(message: Message, thinking: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role, "content": _content(message.content)}
    if message.name is not None:
        body["name"] = message.name
    if message.tool_calls:
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    # The hosted API refuses a thinking conversation whose tool-calling messages lack the field.
    if message.reasoning is not None or (message.tool_calls and thinking):
        body["reasoning_content"] = message.reasoning or ""
    if message.tool_call_id is not None:
        body["tool_call_id"] = message.tool_call_id
    if message.partial:
        body["partial"] = True
    return body


def _content(content: str | tuple[Part, ...] | None) -> str | list[dict[str, Any]]:
    if content is None or isinstance(content, str):
        return content or ""
    return [_part(part) for part in content]


def _part(part: Part) -> dict[str, Any]:
    match part:
        case TextPart(text=text):
            return {"type": "text", "text": text}
        case ImagePart(url=url):
            return {"type": "image_url", "image_url": {"url": url}}
        case VideoPart(url=url):
            return {"type": "video_url", "video_url": {"url": url}}


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    if not tool.strict:
        function["strict"] = False
    return {"type": "function", "function": function}


def _tool_choice(choice: str) -> str | dict[str, Any]:
    kind, _, name = choice.partition(":")
    return {"type": "function", "function": {"name": name}} if kind == "tool" else choice


def _response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    if not schema:
        return {"type": "json_object"}
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }
