"""Sampling policies at the API's door: what is refused, what is replaced and said so, what is honoured."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kimi_server import K26, OFF, WEATHER, Answer, Kimi, kimi_serving
from openai import AsyncOpenAI

from perilune.backends.embedded import EmbeddedBackend
from perilune.backends.scripted import Reply, ScriptedBackend
from perilune.chat.messages import Request
from perilune.settings import Settings

HEADER = "x-perilune-adjusted"
GPT: dict[str, Any] = {
    "temperature": 0.2,
    "top_p": 1,
    "n": 2,
    "presence_penalty": 0.1,
    "frequency_penalty": -0.1,
    "logprobs": True,
    "top_logprobs": 3,
}
"""What programs that were written for GPT models send."""


class Noting:
    """A model that keeps what it was asked."""

    def __init__(self, policy: str, **entry: Any) -> None:
        self.asked: list[Request] = []
        entry = {"sampling_policy": policy} | entry
        self.backend = ScriptedBackend(self._reply, entry=msgspec.structs.replace(K26, **entry))

    def _reply(self, request: Request) -> Reply:
        self.asked.append(request)
        return "Noted."

    @property
    def sampling(self) -> tuple[float | None, float | None]:
        return self.asked[-1].temperature, self.asked[-1].top_p


async def test_clamp_says_what_it_changed(tmp_path: Path) -> None:
    model = Noting("clamp")
    async with kimi_serving(tmp_path, model.backend) as k26:
        for stream in (False, True):
            answer = await k26.ask(**GPT, stream=stream)
            assert adjusted(answer) == (
                "temperature=1.0, top_p=0.95, n=1, presence_penalty=0, frequency_penalty=0, "
                "logprobs=false, top_logprobs=0"
            )
            assert model.sampling == (1.0, 0.95)
        assert adjusted(await k26.ask(temperature=2.5, thinking=OFF)) == "temperature=0.6"
        assert model.sampling == (0.6, 0.95)
        estimate = await k26.ask("/v1/tokenizers/estimate-token-count", temperature=0)
        assert adjusted(estimate) == "temperature=1.0"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_program_for_gpt_runs_unchanged_under_clamp(tmp_path: Path, stream: bool) -> None:
    """All that docs/api.md says of such programs' fields, with their own client."""
    model = Noting("clamp")
    fields: dict[str, Any] = GPT | {
        "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        "max_completion_tokens": 128_000,
        "reasoning_effort": "none",
        "verbosity": "low",
        "service_tier": "auto",
        "logit_bias": {"50256": -100},
        "user": "u-1",
        "store": False,
        "metadata": {"team": "a"},
        "seed": 7,
        "stop": ["END"],
        "response_format": {"type": "json_object"},
        "tools": [WEATHER],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    async with kimi_serving(tmp_path, model.backend) as k26:
        async with AsyncOpenAI(base_url=k26.api.url, api_key=k26.api.key, max_retries=0) as ai:
            made = await ai.chat.completions.with_raw_response.create(
                model="kimi-k2.6", stream=stream, **fields
            )
            told = made.headers[HEADER]
            if stream:
                said = "".join([one.choices[0].delta.content or "" async for one in made.parse()])
            else:
                said = made.parse().choices[0].message.content
    assert said == "Noted." and told.startswith("temperature=0.6, top_p=0.95, n=1, ")
    (asked,) = model.asked
    assert asked.messages[0].role == "system" and not asked.thinking
    assert (asked.max_tokens, asked.seed, asked.stop) == (128_000, 7, ("END",))
    assert (asked.tool_choice, asked.max_parallel_calls, asked.json_schema) == ("required", 1, {})


@pytest.mark.parametrize("policy", ["strict", "clamp", "open"])
async def test_a_counted_prompt_without_room_never_reaches_the_model(tmp_path: Path, policy: str) -> None:
    """Not every engine says what is wrong with one."""
    model = Noting(policy, context_length=100)
    long = [{"role": "user", "content": "long " * 200}]
    async with kimi_serving(tmp_path, model.backend) as k26:
        for stream in (False, True):
            (await k26.ask(messages=long, stream=stream)).refused(
                "exceeded model token limit: 100 (requested: "
            )
        assert model.asked == []
        assert (await k26.ask(max_tokens=5)).message["content"] == "Noted."


async def test_nothing_is_said_where_nothing_was_changed(tmp_path: Path) -> None:
    async with kimi_serving(tmp_path, Noting("clamp").backend) as k26:
        same = {"temperature": 1, "top_p": 0.95, "n": 1, "presence_penalty": 0, "logprobs": False}
        for fields in ({}, same, {"max_completion_tokens": 128_000, "seed": 3}, {"stream": True}):
            assert adjusted(await k26.ask(**fields)) is None


@pytest.mark.parametrize("policy", ["clamp", "open"])
async def test_a_length_that_was_cut_is_told(tmp_path: Path, policy: str) -> None:
    model = Noting(policy)
    async with kimi_serving(tmp_path, model.backend) as k26:
        for stream in (False, True):
            answer = await k26.ask(max_tokens=300_000, stream=stream)
            name, _, most = str(adjusted(answer)).partition("=")
            assert (name, int(most)) == ("max_completion_tokens", model.asked[-1].max_tokens)
            assert 262_000 < int(most) < 262_144


async def test_strict_judges_in_the_hosted_api_s_order(tmp_path: Path) -> None:
    async with kimi_serving(tmp_path, Noting("strict").backend) as k26:
        asked = dict(GPT)
        for name, only in (
            ("temperature", "1"),
            ("top_p", "0.95"),
            ("n", "1"),
            ("presence_penalty", "0"),
            ("frequency_penalty", "0"),
            ("logprobs", "false"),
            ("top_logprobs", "0"),
        ):
            (await k26.ask(**asked)).refused(f"invalid {name}: only {only} is allowed for this model")
            del asked[name]
        for strange in (-0.1, 2.5):
            (await k26.ask(temperature=strange)).refused("invalid temperature: only 1 is allowed")
        assert adjusted(await k26.ask()) is None


async def test_open_honours_what_can_be(tmp_path: Path) -> None:
    model = Noting("open")
    async with kimi_serving(tmp_path, model.backend) as k26:
        assert adjusted(await k26.ask(temperature=0.2, top_p=1)) is None
        assert model.sampling == (0.2, 1)
        assert (await k26.ask()).status == 200 and model.sampling == (None, None)
        (await k26.ask(temperature=2.5)).refused("temperature: 2.5 is out of range")
        (await k26.ask(top_p=0)).refused("top_p: 0 leaves nothing to choose from")
        (await k26.ask(top_p=1.1)).refused("top_p: 1.1 is out of range")
        (await k26.ask(n=2)).refused("invalid n: only 1 is allowed")
        (await k26.ask(logprobs=True)).refused("invalid logprobs: only false is allowed")


async def test_what_is_accepted_is_not_what_is_computed(tmp_path: Path) -> None:
    greedy = {"temperature_thinking": 0.0, "temperature_instant": 0.0, "top_p": 1.0}
    rules = {"temperature_thinking": 1.0, "temperature_instant": 0.6, "top_p": 0.95}
    for policy in ("strict", "clamp"):
        model = Noting(policy, sampling=greedy, accepted=rules)
        async with kimi_serving(tmp_path / policy, model.backend) as k26:
            for fields in ({"temperature": 1.0, "top_p": 0.95}, {"temperature": 0.6, "thinking": OFF}, {}):
                assert adjusted(await k26.ask(**fields)) is None
                assert model.sampling == (0.0, 1.0)


# ---- the bundled model


@pytest.fixture
async def nano(tmp_path: Path) -> AsyncIterator[Kimi]:
    settings = Settings(home=tmp_path, serve_as="kimi-k2.6", threads=1, cache_tokens=8192)
    backend = await EmbeddedBackend.start(settings)
    try:
        async with kimi_serving(tmp_path / "home", backend, serve_as="kimi-k2.6") as kimi:
            yield kimi
    finally:
        await backend.close()


async def test_the_bundled_model_has_k26_s_constraints(nano: Kimi) -> None:
    """Whatever its name; and it computes greedily all the same, so that seeds change nothing."""
    for model in ("kimi-k2.6", "perilune-nano"):
        (await nano.ask(model=model, temperature=0)).refused("invalid temperature: only 1 is allowed")
        (await nano.ask(model=model, temperature=1, thinking=OFF)).refused("only 0.6 is allowed")
        (await nano.ask(model=model, top_p=1)).refused("invalid top_p: only 0.95 is allowed")
        (await nano.ask(model=model, n=2)).refused("invalid n: only 1 is allowed")
    (await nano.ask(max_tokens=262144)).refused("exceeded model token limit: 262144 (requested: 262")
    # The vendor's examples ask for more than this model has: it gives what it can, and says so.
    sizes = [await tokens(nano, "\n" * lines) for lines in (1000, 2000)]
    nearly = "\n" * (2000 + (4070 - sizes[1]) * 1000 // (sizes[1] - sizes[0]))
    room = 4096 - await tokens(nano, nearly)
    assert 10 < room < 60
    vendor = {"max_tokens": 1024 * 32, "temperature": 1.0, "top_p": 0.95}
    for stream in (False, True):
        answer = await nano.ask(messages=[{"role": "user", "content": nearly}], **vendor, stream=stream)
        assert adjusted(answer) == f"max_completion_tokens={room}"
    long = [{"role": "user", "content": "long " * 4096}]
    (await nano.ask(messages=long)).refused("exceeded model token limit: 4096 (requested: ")
    said = [
        (await nano.ask(temperature=0.6, thinking=OFF, seed=seed, max_tokens=30)).message for seed in range(4)
    ]
    assert said[0]["content"] and all(one == said[0] for one in said)
    (listed,) = [one for one in (await nano.get("/v1/models")).body["data"] if one["id"] == "kimi-k2.6"]
    assert listed["perilune"]["sampling_policy"] == "strict"
    assert listed["perilune"]["accepted"]["temperature_thinking"] == 1.0


async def tokens(kimi: Kimi, text: str) -> int:
    said = [{"role": "user", "content": text}]
    return int(
        (await kimi.ask("/v1/tokenizers/estimate-token-count", messages=said)).body["data"]["total_tokens"]
    )


def adjusted(answer: Answer) -> str | None:
    """The header of an answer that must be good."""
    assert answer.status == 200, answer.text
    if answer.text.startswith("{"):
        json.loads(answer.text)
    else:
        assert answer.chunks
    told = answer.headers.get(HEADER)
    return None if told is None else str(told)
