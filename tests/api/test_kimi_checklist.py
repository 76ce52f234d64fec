"""The numbered checklist of the Kimi API: requests, refusals and whole answers.

Each test bears the number of its statement.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from kimi_server import HI, OFF, WEATHER, Kimi, kimi_serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
    "AABJRU5ErkJggg=="
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def k26(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kimi]:
    async with kimi_serving(tmp_path_factory.mktemp("kimi")) as kimi:
        yield kimi


async def test_001_no_key(k26: Kimi) -> None:
    (await k26.ask(auth="")).refused(status=401, kind="invalid_authentication_error")


async def test_002_unknown_key(k26: Kimi) -> None:
    (await k26.ask(auth="Bearer sk-none")).refused(status=401, kind="invalid_authentication_error")


async def test_003_errors_have_type_and_message(k26: Kimi) -> None:
    for answer in (await k26.ask(auth=""), await k26.ask(model="x"), await k26.ask(n=2)):
        assert answer.status >= 400
        assert {"type", "message"} == {name for name, value in answer.body["error"].items() if str(value)}
        assert all(isinstance(value, str) for value in answer.body["error"].values())


async def test_004_every_response_has_its_id(k26: Kimi) -> None:
    answers = [await k26.ask(), await k26.ask(stream=True), await k26.ask(auth=""), await k26.ask(n=2)]
    answers += [await k26.get("/v1/models"), await k26.get("/v1/nothing")]
    ids = [answer.headers["msh-request-id"] for answer in answers]
    assert ids == [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(answers)


async def test_005_unknown_model(k26: Kimi) -> None:
    told = (await k26.ask(model="gpt-5")).refused(status=404, kind="resource_not_found_error")
    assert told.startswith("Not found the model gpt-5 or Permission denied")


async def test_006_minimal_request(k26: Kimi) -> None:
    answer = await k26.ask()
    assert answer.body["object"] == "chat.completion" and answer.body["model"] == "kimi-k2.6"
    assert answer.choice["finish_reason"] == "stop" and answer.message["content"]


async def test_007_thinking_is_on(k26: Kimi) -> None:
    assert (await k26.ask()).message["reasoning_content"] == "Short is best."


async def test_008_thinking_off(k26: Kimi) -> None:
    message = (await k26.ask(thinking=OFF)).message
    assert message["content"] and "reasoning_content" not in message


async def test_009_thinking_needs_a_type(k26: Kimi) -> None:
    (await k26.ask(thinking={})).refused("thinking")


async def test_010_thinking_of_no_known_type(k26: Kimi) -> None:
    (await k26.ask(thinking={"type": "maybe"})).refused("thinking")


async def test_011_keep_all(k26: Kimi) -> None:
    assert (await k26.ask(thinking={"type": "enabled", "keep": "all"})).message["content"]


async def test_012_keep_some(k26: Kimi) -> None:
    (await k26.ask(thinking={"type": "enabled", "keep": "some"})).refused("keep")


async def test_013_temperature_of_thinking(k26: Kimi) -> None:
    for allowed in (1, 1.0, None):
        assert (await k26.ask(temperature=allowed)).message["content"]
    for other in (0.5, 0.6, 0):
        (await k26.ask(temperature=other)).refused("invalid temperature: only 1 is allowed for this model")


async def test_014_temperature_without_thinking(k26: Kimi) -> None:
    assert (await k26.ask(thinking=OFF, temperature=0.6)).message["content"]
    (await k26.ask(thinking=OFF, temperature=1)).refused("only 0.6 is allowed for this model")


async def test_015_top_p(k26: Kimi) -> None:
    assert (await k26.ask(top_p=0.95)).message["content"]
    (await k26.ask(top_p=0.8)).refused("invalid top_p: only 0.95 is allowed for this model")


async def test_016_n(k26: Kimi) -> None:
    assert (await k26.ask(n=1)).message["content"]
    (await k26.ask(n=2)).refused("invalid n: only 1 is allowed for this model")


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
async def test_017_penalties(k26: Kimi, name: str) -> None:
    assert (await k26.ask(**{name: 0})).message["content"]
    (await k26.ask(**{name: 0.5})).refused(f"invalid {name}: only 0 is allowed for this model")


async def test_018_temperature_is_judged_first(k26: Kimi) -> None:
    for other in ({"top_p": 0.8}, {"n": 2}, {"presence_penalty": 0.5}, {"frequency_penalty": 0.5}):
        told = (await k26.ask(**other, temperature=0.5)).refused("invalid temperature")
        assert f"invalid {next(iter(other))}" not in told


async def test_019_the_longest_answer(k26: Kimi) -> None:
    assert (await k26.ask()).message["content"] == "At most 32768 tokens."


async def test_021_more_than_the_context(k26: Kimi) -> None:
    for stream in (False, True):
        answer = await k26.ask(max_completion_tokens=262144, stream=stream)
        answer.refused("exceeded model token limit: 262144 (requested:")
    assert (await k26.ask(max_completion_tokens=262000)).message["content"] == "At most 262000 tokens."


async def test_022_a_prompt_over_the_context(k26: Kimi) -> None:
    long = [{"role": "user", "content": "long " * 220_000}]
    (await k26.ask(messages=long)).refused("exceeded model token limit: 262144 (requested: 2")


async def test_023_no_messages(k26: Kimi) -> None:
    (await k26.ask(messages=[])).refused("Invalid request: messages must not be empty")


async def test_024_an_empty_answer_in_the_history(k26: Kimi) -> None:
    for empty in ({"content": ""}, {"content": None}, {"reasoning_content": "Hm."}):
        answer = await k26.ask(messages=[*HI, {"role": "assistant", **empty}, *HI])
        answer.refused("the message at position 1 with role 'assistant' must not be empty")


async def test_025_calls_need_no_text(k26: Kimi) -> None:
    for beside in ({"content": ""}, {"content": None}, {}):
        assert (await k26.ask(messages=loop("a:0", **beside), tools=[WEATHER])).message["content"]


async def test_026_stops(k26: Kimi) -> None:
    (await k26.ask(stop=list("abcdef"))).refused("maximum length 5")
    for long in ("x" * 33, ["x" * 33], ["é" * 17]):
        (await k26.ask(stop=long)).refused("must not be longer than 32")
    assert (await k26.ask(stop=["é" * 16, *"abcd"])).status == 200


async def test_028_unknown_fields(k26: Kimi) -> None:
    assert (await k26.ask(store=True, metadata={"a": "b"}, whatever=[1])).message["content"]


async def test_029_no_tools(k26: Kimi) -> None:
    assert (await k26.ask(tools=[])).message["content"]


async def test_035_cached_tokens_in_both_places(k26: Kimi) -> None:
    usage = (await k26.ask(messages=loop("a:0"), tools=[WEATHER])).usage
    assert usage["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"] > 0


async def test_036_totals(k26: Kimi) -> None:
    usage, plain = (await k26.ask()).usage, (await k26.ask(thinking=OFF)).usage
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    thought = usage["completion_tokens_details"]["reasoning_tokens"]
    assert thought > 0 and usage["completion_tokens"] == plain["completion_tokens"] + thought


async def test_055_schemas_of_answers_that_lack_something(k26: Kimi) -> None:
    whole: dict[str, Any] = {"name": "a", "schema": {"type": "object"}, "strict": True}
    assert (await asked_for(k26, json_schema=whole)).status == 200
    for broken in (
        {name: value for name, value in whole.items() if name != "name"},
        {name: value for name, value in whole.items() if name != "schema"},
        whole | {"strict": "yes"},
        whole | {"schema": []},
    ):
        (await asked_for(k26, json_schema=broken)).refused("response_format.json_schema")
    (await asked_for(k26)).refused("response_format.json_schema")
    (await asked_for(k26, type="yaml")).refused("response_format")


async def test_057_images_as_string_and_object(k26: Kimi) -> None:
    for url in (PIXEL, {"url": PIXEL}):
        assert (await k26.ask(messages=seen(url))).message["content"]


async def test_058_images_from_elsewhere(k26: Kimi) -> None:
    (await k26.ask(messages=seen({"url": "https://example.org/a.png"}))).refused("only data URLs")


async def test_062_models(k26: Kimi) -> None:
    listed = (await k26.get("/v1/models")).body
    (item,) = listed["data"]
    assert listed["object"] == "list" and (item["id"], item["object"]) == ("kimi-k2.6", "model")
    assert item["context_length"] == 262144
    names = ("supports_image_in", "supports_video_in", "supports_reasoning")
    assert [item[name] for name in names] == [True, True, True]
    assert (await k26.get("/v1/models/kimi-k2.6")).body == item


async def test_063_the_estimate_is_the_prompt_s_size(k26: Kimi) -> None:
    for messages, tools in ((HI, []), (loop("a:0"), [WEATHER])):
        path = "/v1/tokenizers/estimate-token-count"
        estimate = (await k26.ask(path, messages=messages, tools=tools)).body
        used = (await k26.ask(messages=messages, tools=tools)).usage["prompt_tokens"]
        assert estimate == {"data": {"total_tokens": used}}


async def asked_for(k26: Kimi, **form: Any) -> Any:
    return await k26.ask(response_format={"type": "json_schema"} | form)


def seen(url: object) -> list[Any]:
    parts = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "What is it?"}]
    return [{"role": "user", "content": parts}]


def loop(call_id: str, **beside: Any) -> list[Any]:
    """A conversation whose tool call has its answer."""
    call = {"id": call_id, "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    asked = {"role": "assistant", "tool_calls": [call], "reasoning_content": "Ask."} | beside
    return [*HI, asked, {"role": "tool", "tool_call_id": call_id, "content": "dry"}]
