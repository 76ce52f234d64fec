"""langchain-openai's ChatOpenAI as a client of a server."""

from __future__ import annotations

from contextlib import closing
from functools import reduce
from operator import add
from typing import Any, Literal

from client_steps import OFF, WEATHER, Inputs, failure, image_message, run_steps
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

RIGA = "The weather in Riga and Oslo?"


class Forecast(BaseModel):
    city: Literal["Riga", "Oslo"]
    sky: Literal["clear", "grey"]


def chat(inputs: Inputs, model: str = "", key: str = "", **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=model or inputs["model"],
        base_url=inputs["url"],
        api_key=key or inputs["key"],
        max_retries=0,
        stream_usage=True,
        **options,
    )


def answered(message: AIMessage) -> dict[str, Any]:
    usage: Any = message.usage_metadata or {}
    return {
        "text": message.content,
        "thinking": message.additional_kwargs.get("reasoning_content"),
        "finish": message.response_metadata.get("finish_reason"),
        "calls": [
            {"id": call["id"], "name": call["name"], "arguments": call["args"]} for call in message.tool_calls
        ],
        "usage": {
            "prompt": usage.get("input_tokens"),
            "completion": usage.get("output_tokens"),
            "cached": usage.get("input_token_details", {}).get("cache_read"),
            "reasoning": usage.get("output_token_details", {}).get("reasoning"),
        },
    }


def streamed(model: Any, messages: Any) -> dict[str, Any]:
    chunks = list(model.stream(messages))
    return answered(reduce(add, chunks)) | {"pieces": len(chunks)}


def tools(inputs: Inputs) -> dict[str, Any]:
    model = chat(inputs).bind_tools([WEATHER])
    first = model.invoke(RIGA)
    results = [ToolMessage("dry", tool_call_id=call["id"]) for call in first.tool_calls]
    last = model.invoke([HumanMessage(RIGA), first, *results])
    seen = answered(first)
    return answered(last) | {"calls": seen["calls"], "finish": seen["finish"]}


def structured(inputs: Inputs) -> Any:
    model = chat(inputs, extra_body=OFF, max_tokens=200, seed=1)
    found: Any = model.with_structured_output(Forecast, method="json_schema").invoke("A forecast.")
    return found.model_dump()


def errors(inputs: Inputs) -> dict[str, Any]:
    return {
        "bad_request": failure(lambda: chat(inputs).invoke([])),
        "wrong_key": failure(lambda: chat(inputs, key="plk_wrong").invoke("Hi")),
        "wrong_scope": failure(lambda: chat(inputs, key=inputs["admin_key"]).invoke("Hi")),
        "unknown_model": failure(lambda: chat(inputs, model="nobody").invoke("Hi")),
        "busy": failure(lambda: chat(inputs).invoke("busy")),
        "down": failure(lambda: chat(inputs).invoke("down")),
    }


def abort(inputs: Inputs) -> int:
    pieces = 0
    with closing(chat(inputs).stream("endless")) as stream:
        for _ in stream:
            pieces += 1
            if pieces == 5:
                break
    return pieces


def given(inputs: Inputs) -> list[dict[str, Any]]:
    seen = []
    for request in inputs["requests"]:
        model = chat(
            inputs, extra_body=OFF, max_tokens=request["max_tokens"], temperature=request["temperature"]
        ).bind_tools(request["tools"], parallel_tool_calls=request["parallel_tool_calls"])
        seen.append(streamed(model, request["messages"]))
    return seen


run_steps(
    {
        "chat": lambda inputs: answered(chat(inputs).invoke("Grüße, 月")),
        "stream": lambda inputs: streamed(chat(inputs), "Grüße, 月"),
        "quiet": lambda inputs: answered(chat(inputs, extra_body=OFF).invoke("Hi")),
        "tools": tools,
        "tools_streamed": lambda inputs: streamed(chat(inputs).bind_tools([WEATHER]), RIGA),
        "structured": structured,
        "vision": lambda inputs: answered(
            chat(inputs, extra_body=OFF, max_tokens=8).invoke(image_message(inputs["image"]))
        ),
        "errors": errors,
        "abort": abort,
        "given": given,
    }
)
