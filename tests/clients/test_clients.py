"""Clients that other people wrote, against our real server over real sockets (`make clients`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_servers import (
    CLIENTS,
    FORECAST,
    Recorder,
    StepsModel,
    command_of,
    perilune_serve,
    plain,
    run_client,
)
from tests.api.api_server import serving
from tests.chat.media_files import noise, png, url_of

from perilune.agent.solo import run_agent
from perilune.agent.workspace import DirectoryWorkspace
from perilune.chat.wire import encode_request
from perilune.model.make import make_checkpoint
from perilune.model.shapes import SHAPES
from perilune.model.tiny import write_byte_tokenizer

pytestmark = pytest.mark.clients
IMAGE = url_of(png(noise(56, 56)))
STEPS = (
    "chat", "stream", "quiet", "tools", "tools_streamed", "structured", "vision", "errors", "abort",
)  # fmt: skip
CALLS = [
    {"id": "functions.weather:0", "name": "weather", "arguments": {"place": "Riga"}},
    {"id": "functions.weather:1", "name": "weather", "arguments": {"place": "Oslo"}},
]
THINKING_SHOWN = frozenset(CLIENTS) - {"langchain-openai"}
"""ChatOpenAI reads OpenAI's own fields only and drops `reasoning_content`."""
KINDS = {
    "bad_request": "BadRequestError",
    "wrong_key": "AuthenticationError",
    "wrong_scope": "PermissionDeniedError",
    "unknown_model": "NotFoundError",
    "busy": "RateLimitError",
    "down": "InternalServerError",
}
LITELLM_KINDS = KINDS | {"wrong_scope": "APIError", "down": "ServiceUnavailableError"}
"""litellm has its own class for 503 and none for 403."""
WORDS = {
    "bad_request": "messages",
    "wrong_key": "not valid",
    "wrong_scope": "key",
    "unknown_model": "Not found the model",
    "busy": "busy",
    "down": "gone",
}


class Seen(dict[str, Any]):
    """A client's results by step, and what the server wrote down."""

    def __init__(self, client: str, results: dict[str, Any], rows: list[str], left: int) -> None:
        super().__init__(results)
        self.client, self.rows, self.left = client, rows, left

    def __getitem__(self, step: str) -> Any:
        result = super().__getitem__(step)
        if isinstance(result, dict) and "failed" in result:
            pytest.fail(f"{self.client}, {step}: {result['failed']}")
        return result


@pytest.fixture(scope="module", params=CLIENTS)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """All steps of one client against one server."""

    command_of(request.param)

    async def all_steps() -> Seen:
        model = StepsModel()
        async with serving(tmp_path_factory.mktemp("home"), model) as api:
            inputs: Any = {"model": "kimi-k2.6", "image": IMAGE, "admin_key": api.admin_key}
            results = await run_client(request.param, api.url, api.key, STEPS, **inputs)
            async with asyncio.timeout(10):
                while "open" in api.rows():  # noqa: ASYNC110  what is settled says nobody
                    await asyncio.sleep(0.02)
            return Seen(request.param, results, api.rows(), model.left)

    yield asyncio.run(all_steps())


def test_a_whole_answer(seen: Seen) -> None:
    answer = seen["chat"]
    assert (answer["text"], answer["finish"]) == ("You said: Grüße, 月", "stop")
    assert answer["thinking"] == ("A greeting is due." if seen.client in THINKING_SHOWN else None)


def test_a_stream_adds_up_to_the_whole_answer(seen: Seen) -> None:
    whole, stream = seen["chat"], seen["stream"]
    assert stream["pieces"] > 5
    assert (stream["text"], stream["finish"]) == (whole["text"], whole["finish"])
    assert (stream["thinking"] or "") == (whole["thinking"] or "")
    assert stream["usage"] == whole["usage"]


def test_usage_is_where_the_client_reads_it(seen: Seen) -> None:
    usage = seen["chat"]["usage"]
    assert usage["prompt"] > 0 and usage["completion"] > usage["reasoning"] > 0
    assert usage["cached"] == 0
    assert seen["tools"]["usage"]["cached"] > 0


def test_thinking_off(seen: Seen) -> None:
    answer = seen["quiet"]
    assert (answer["text"], answer["thinking"]) == ("You said: Hi", None)


def test_tool_calls_and_their_results(seen: Seen) -> None:
    answer = seen["tools"]
    assert (answer["calls"], answer["finish"], answer["text"]) == (CALLS, "tool_calls", "You said: dry")


def test_streamed_tool_calls(seen: Seen) -> None:
    stream = seen["tools_streamed"]
    assert (stream["calls"], stream["finish"]) == (CALLS, "tool_calls")
    assert stream["pieces"] > 5


def test_structured_output(seen: Seen) -> None:
    assert seen["structured"] == FORECAST


def test_an_image_arrives_whole(seen: Seen) -> None:
    assert seen["vision"]["text"] == f"I see 1 of {len(IMAGE)}."


@pytest.mark.parametrize("case", KINDS)
def test_errors_are_of_the_clients_own_kinds(seen: Seen, case: str) -> None:
    error = seen["errors"][case]
    kinds = LITELLM_KINDS if seen.client.startswith("litellm") else KINDS
    assert kinds[case] in (error["kind"], *error.get("bases", ())), error
    assert WORDS[case] in error["message"]


def test_a_stream_that_is_left_stops_the_model_and_is_settled(seen: Seen) -> None:
    assert seen["abort"] == 5
    assert seen.left == 1
    assert seen.rows.count("aborted") == 1


# ---- our engine behind it


async def rename_requests(folder: Path) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """The calls of a little rename as bodies, and the tool calls that are right."""
    folder.mkdir()
    (folder / "a.py").write_text("import os\n\ntotal = 1\nprint(total)\n")
    recorder = Recorder()
    await run_agent(
        recorder, "rename", "Rename total to amount.", "a.py", DirectoryWorkspace(folder), model="scripted"
    )
    bodies = [encode_request(request, model="perilune-nano", stream=True) for request, _ in recorder.calls]
    return bodies, [plain(completion) for _, completion in recorder.calls]


@pytest.mark.parametrize("client", CLIENTS)
async def test_perilune_nano_renames_by_way_of_the_client(client: str, tmp_path: Path) -> None:
    bodies, right = await rename_requests(tmp_path / "work")
    known = ("model", "messages", "tools", "max_tokens", "temperature")
    requests = [
        {name: body[name] for name in known}
        | {"thinking": {"type": "disabled"}, "parallel_tool_calls": False}
        for body in bodies
    ]
    async with perilune_serve(tmp_path / "home", sampling_policy="open", threads=1) as (url, key):
        seen = await run_client(client, url, key, ["given"], model="perilune-nano", requests=requests)
    answers = seen["given"]
    assert isinstance(answers, list), answers
    assert [answer["calls"] for answer in answers] == right
    assert answers[0]["usage"]["cached"] == 0
    assert all(answer["usage"]["cached"] > 0 for answer in answers[1:])


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_model_that_sees_and_a_schema_that_holds(client: str, tmp_path: Path) -> None:
    folder = tmp_path / "Seeing"
    make_checkpoint(SHAPES["tiny"](), folder, tokenizer=write_byte_tokenizer, hashes=False)
    card = {"id": "seeing", "context_length": 1200, "max_output_tokens": 300}
    (folder / "perilune.json").write_text(json.dumps(card))
    async with perilune_serve(tmp_path / "home", checkpoint=folder, threads=1, cache_tokens=8192) as (
        url,
        key,
    ):
        inputs: Any = {"model": "seeing", "image": IMAGE}
        seen = await run_client(client, url, key, ["vision", "structured"], **inputs)
    assert 0 < seen["vision"]["usage"]["completion"] <= 8
    assert seen["vision"]["usage"]["prompt"] > 20
    assert seen["structured"]["city"] in ("Riga", "Oslo"), seen["structured"]
