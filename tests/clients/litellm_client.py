"""litellm as a client of a server. `provider` of the inputs is the route it takes: `openai` or `moonshot`."""

from __future__ import annotations

import json
from typing import Any, Literal

import litellm
from client_steps import OFF, WEATHER, Inputs, failure, image_message, run_steps
from pydantic import BaseModel

litellm.telemetry = False
litellm.suppress_debug_info = True
RIGA: list[Any] = [{"role": "user", "content": "The weather in Riga and Oslo?"}]


class Forecast(BaseModel):
    city: Literal["Riga", "Oslo"]
    sky: Literal["clear", "grey"]


def ask(inputs: Inputs, messages: list[Any], model: str = "", key: str = "", **options: Any) -> Any:
    return litellm.completion(
        model=f"{inputs['provider']}/{model or inputs['model']}",
        api_base=inputs["url"],
        api_key=key or inputs["key"],
        messages=messages,
        max_retries=0,
        num_retries=0,
        **options,
    )


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def counted(usage: Any) -> dict[str, Any]:
    known = usage.model_dump()
    prompt, completion = (known.get(f"{kind}_tokens_details") or {} for kind in ("prompt", "completion"))
    return {
        "prompt": usage.prompt_tokens,
        "completion": usage.completion_tokens,
        "cached": prompt.get("cached_tokens"),
        "reasoning": completion.get("reasoning_tokens"),
    }


def answered(answer: Any) -> dict[str, Any]:
    (choice,) = answer.choices
    return {
        "text": choice.message.content,
        "thinking": getattr(choice.message, "reasoning_content", None),
        "finish": choice.finish_reason,
        "usage": counted(answer.usage),
    }


def plain(calls: Any) -> list[dict[str, Any]]:
    return [
        {"id": call.id, "name": call.function.name, "arguments": json.loads(call.function.arguments)}
        for call in calls or ()
    ]


def streamed(inputs: Inputs, messages: list[Any], **options: Any) -> dict[str, Any]:
    chunks = list(ask(inputs, messages, stream=True, stream_options={"include_usage": True}, **options))
    whole: Any = litellm.stream_chunk_builder(chunks, messages=messages)
    return answered(whole) | {
        "calls": plain(whole.choices[0].message.tool_calls),
        "pieces": len(chunks),
    }


def tools(inputs: Inputs) -> dict[str, Any]:
    first = ask(inputs, RIGA, tools=[WEATHER])
    calls = first.choices[0].message.tool_calls
    results = [{"role": "tool", "tool_call_id": call.id, "content": "dry"} for call in calls]
    last = ask(
        inputs, [*RIGA, first.choices[0].message.model_dump(exclude_none=True), *results], tools=[WEATHER]
    )
    return answered(last) | {"calls": plain(calls), "finish": first.choices[0].finish_reason}


def structured(inputs: Inputs) -> Any:
    answer = ask(
        inputs, said("A forecast."), response_format=Forecast, extra_body=OFF, max_tokens=200, seed=1
    )
    return Forecast.model_validate_json(answer.choices[0].message.content).model_dump()


def errors(inputs: Inputs) -> dict[str, Any]:
    return {
        "bad_request": failure(lambda: ask(inputs, [{"role": "user"}])),
        "wrong_key": failure(lambda: ask(inputs, said("Hi"), key="plk_wrong")),
        "wrong_scope": failure(lambda: ask(inputs, said("Hi"), key=inputs["admin_key"])),
        "unknown_model": failure(lambda: ask(inputs, said("Hi"), model="nobody")),
        "busy": failure(lambda: ask(inputs, said("busy"))),
        "down": failure(lambda: ask(inputs, said("down"))),
    }


def abort(inputs: Inputs) -> int:
    stream = ask(inputs, said("endless"), stream=True)
    pieces = sum(1 for _, _ in zip(range(5), stream, strict=False))
    stream.completion_stream.close()
    return pieces


def given(inputs: Inputs) -> list[dict[str, Any]]:
    seen = []
    for request in inputs["requests"]:
        known = {
            name: request[name] for name in ("tools", "max_tokens", "temperature", "parallel_tool_calls")
        }
        seen.append(streamed(inputs, request["messages"], extra_body=OFF, **known))
    return seen


run_steps(
    {
        "chat": lambda inputs: answered(ask(inputs, said("Grüße, 月"))),
        "stream": lambda inputs: streamed(inputs, said("Grüße, 月")),
        "quiet": lambda inputs: answered(ask(inputs, said("Hi"), extra_body=OFF)),
        "tools": tools,
        "tools_streamed": lambda inputs: streamed(inputs, RIGA, tools=[WEATHER]),
        "structured": structured,
        "vision": lambda inputs: answered(
            ask(inputs, image_message(inputs["image"]), extra_body=OFF, max_tokens=8)
        ),
        "errors": errors,
        "abort": abort,
        "given": given,
    }
)
