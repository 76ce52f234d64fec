"""Servers for clients that are no part of our environment, and how their programs are run.

`make clients` makes the clients' environment and names it in PERILUNE_CLIENTS and PERILUNE_NODE_MODULES.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perilune.backends.base import ModelEntry
from perilune.backends.scripted import Call, Reply, ScriptedBackend, text_of, usage_of
from perilune.backends.served import K26_SAMPLING
from perilune.chat.messages import Completion, Event, ImagePart, Message, Request, TextDelta, TextPart
from perilune.errors import BackendRateLimited, BackendUnreachable

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CLIENT_PYTHON = os.environ.get("PERILUNE_CLIENTS", "")
NODE_MODULES = os.environ.get("PERILUNE_NODE_MODULES", "")
CLIENTS = ("openai-node", "langchain-openai", "litellm-openai", "litellm-moonshot")
K26 = ModelEntry(
    id="kimi-k2.6",
    backend="scripted",
    context_length=262144,
    max_output_tokens=32768,
    modalities=("text", "image", "video"),
    sampling=K26_SAMPLING,
    sampling_policy="strict",
    owned_by="moonshot",
)
FORECAST = {"city": "Riga", "sky": "grey"}


def command_of(client: str) -> list[str]:
    """The client's program. Skips the test where the client is not installed."""
    if client == "openai-node":
        node = shutil.which("node")
        if node is None or not (Path(NODE_MODULES) / "openai").is_dir():
            pytest.skip("the openai package for Node is not installed: make clients (it needs node and npm)")
        return [node, str(HERE / "openai_node.cjs")]
    if not Path(CLIENT_PYTHON).is_file():
        pytest.skip("langchain-openai and litellm are not installed: make clients")
    return [CLIENT_PYTHON, str(HERE / f"{client.split('-')[0]}_client.py")]


async def run_client(client: str, url: str, key: str, steps: Sequence[str], **inputs: Any) -> dict[str, Any]:
    """What the client saw in each of the steps."""
    command = command_of(client)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "NODE_PATH": NODE_MODULES,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LANGSMITH_TRACING": "false",
    }
    process = await asyncio.create_subprocess_exec(
        *command,
        env=env,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    provider = client.rpartition("-")[2]
    told = json.dumps({"url": url, "key": key, "steps": list(steps), "provider": provider} | inputs)
    async with asyncio.timeout(240):
        printed, _ = await process.communicate(told.encode())
    assert process.returncode == 0, f"{client} ended with {process.returncode}"
    seen: dict[str, Any] = json.loads(printed.decode().strip().splitlines()[-1])
    return seen


# ---- a scripted model with an answer for each step


class StepsModel(ScriptedBackend):
    """K2.6's entry and a script; "endless" never stops talking, and counts how often it was made to."""

    def __init__(self) -> None:
        super().__init__(_script, entry=K26, chunk=2)
        self.left = 0

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        if _text(request) != "endless":
            async for event in super().stream(request):
                yield event
            return
        try:
            while True:
                yield TextDelta("on ")
                await asyncio.sleep(0.005)
        finally:
            self.left += 1


def _script(request: Request) -> Reply:
    text, last = _text(request), request.messages[-1]
    if text == "busy":
        raise BackendRateLimited("the model is busy", mend="try again later", retry_after_s=1.0)
    if text == "down":
        raise BackendUnreachable("the model is gone", mend="start it")
    if request.json_schema is not None:
        return json.dumps(FORECAST)
    if request.tools and last.role == "user":
        return [Call(request.tools[0].name, {"place": place}) for place in ("Riga", "Oslo")]
    images = [part for part in last.content or () if isinstance(part, ImagePart)]
    answer = f"I see {len(images)} of {len(images[0].url)}." if images else f"You said: {text}"
    thought = "A greeting is due." if request.thinking else None
    message = Message(role="assistant", content=answer, reasoning=thought)
    return Completion(message=message, finish_reason="stop", usage=usage_of(request, message))


def _text(request: Request) -> str:
    last = request.messages[-1]
    if isinstance(last.content, tuple):
        return "".join(part.text for part in last.content if isinstance(part, TextPart))
    return text_of(last)


# ---- the real thing


@asynccontextmanager
async def perilune_serve(home: Path, **settings: object) -> AsyncIterator[tuple[str, str]]:
    """A running `perilune serve` with its engine; its base URL and a key."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    env |= {f"PERILUNE_{name.upper()}": str(value) for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "perilune", "serve", "--home", str(home), "--port", "0",
        env=env, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(120):
            first = (await process.stdout.readline()).decode()
            await process.stdout.readuntil(b"Ctrl-C\n")
        key = json.loads((home / "keys.json").read_text())["project_key"]
        yield first.split(" at ")[1].strip(), key
    finally:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(60):
                await process.wait()


class Recorder(ScriptedBackend):
    """The perfect little model of the rename swarm, which keeps what it was asked and what it said."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Request, Completion]] = []

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        self.calls.append((request, self.answer(request)))
        async for event in super().stream(request):
            yield event


def plain(completion: Completion) -> list[dict[str, Any]]:
    """Its tool calls, as the clients' programs print them."""
    return [
        {"id": call.id, "name": call.name, "arguments": msgspec.json.decode(call.arguments)}
        for call in completion.message.tool_calls
    ]
