"""What schemathesis cannot know of our routes. Read by the process that the test starts.

The served model is named where a name was made up. Every other good chat body is mended, so that calls also
get past the rules that no schema can tell, such as that each tool call has an answer.
"""

from __future__ import annotations

import os
from typing import Any

import schemathesis
from schemathesis import GenerationMode

MODEL = "scripted"
seen = 0


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    global seen
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("model"), str) and body["model"]:
        case.body = {**body, "model": MODEL}
        good = case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE
        seen += good
        if good and seen % 2:
            case.body = mended(case.body)
    if "/models/" in case.path and len(case.path_parameters.get("id", "")) > 1:
        case.path_parameters["id"] = MODEL
    if case.path == "/admin/keys/disable" and isinstance(body, dict) and body.get("key") == own_key():
        case.body = {"key": 0}


def own_key() -> int:
    """The run's own: without it there is no run."""
    return int(os.environ["KEY_ID"])


def mended(body: dict[str, Any]) -> dict[str, Any]:
    messages = [message(one) for one in body["messages"] if one["role"] != "tool"]
    tools = [tool(one, place) for place, one in enumerate(body.get("tools") or ())]
    rest = {
        name: value for name, value in body.items() if name not in ("tool_choice", "chat_template_kwargs")
    }
    form = body.get("response_format")
    if form and form["type"] == "json_schema":
        form = {**form, "json_schema": {"name": "f", "schema": {"type": "object"}}}
    return {**rest, "messages": messages or [message({"role": "user"})], "tools": tools, "stop": None,
            "response_format": form}  # fmt: skip


def message(one: dict[str, Any]) -> dict[str, Any]:
    kept = {"role", "content", "name", "reasoning_content", "reasoning"}
    content = one.get("content")
    if not isinstance(content, str) or not content or "\0" in content:
        content = "Hi"
    return {**{name: value for name, value in one.items() if name in kept}, "content": content}


def tool(one: dict[str, Any], place: int) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"f{place}", "parameters": {"type": "object"}}}
