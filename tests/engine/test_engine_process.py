"""The real process: who notices whose death, and that nobody waits for the dead."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perilune.engine.client import EngineClient
from perilune.engine.protocol import (
    Abort,
    EngineOptions,
    Generate,
    Vocabulary,
    command_reader,
    encode_frame,
)
from perilune.errors import CheckpointError, ConfigError, ContextTooLong, EngineGone, InputError
from perilune.model.tiny import SPECIAL_TOKENS, TINY, write_tiny_checkpoint

VOCABULARY = Vocabulary(
    tokens=(*[bytes([byte]) for byte in range(256)], *[name.encode() for name in SPECIAL_TOKENS]),
    special_ids=tuple(range(256, TINY.vocab_size)),
    eos_id=258,
)
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> EngineOptions:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_tiny_checkpoint(folder)
    return EngineOptions(checkpoint=str(folder), cache_tokens=8000, threads=1)


@pytest.fixture
async def client(options: EngineOptions) -> AsyncIterator[EngineClient]:
    started = await EngineClient.start(options, VOCABULARY)
    yield started
    await started.close()


async def collect(client: EngineClient, **call: Any) -> tuple[list[int], str | None]:
    tokens: list[int] = []
    finish = None
    async for chunk in client.generate(**({"prompt": (1, 2, 3), "max_tokens": 20} | call)):
        tokens += chunk.token_ids
        finish = chunk.finish
    return tokens, finish


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_dead(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while is_alive(pid):
        assert time.monotonic() < deadline, "the engine outlived its client"
        time.sleep(0.02)


async def test_calls_run_in_parallel_fail_alone_and_can_be_dropped(client: EngineClient) -> None:
    assert client.ready.vocab_size == TINY.vocab_size
    assert client.ready.checkpoint_hash
    want = await collect(client)
    together = await asyncio.gather(*(collect(client) for _ in range(20)))
    assert together == [want] * 20
    assert want[1] == "length"
    with pytest.raises(ContextTooLong, match="max_tokens"):
        await collect(client, max_tokens=10**6)
    with pytest.raises(InputError, match="grammar"):
        await collect(client, grammar="start: (")
    assert (await collect(client, grammar='start: "yes"', stop_ids=(258,)))[0] == [*b"yes", 258]

    dropped = client.generate(prompt=(1, 2, 3), max_tokens=5000)
    await anext(dropped)
    assert (await client.stats()).running == 1
    await dropped.aclose()  # type: ignore[attr-defined]
    stats = await client.stats()
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    assert stats.blocks_free + stats.blocks_cached == stats.blocks_total == 1000


async def test_a_killed_engine_ends_every_open_call(client: EngineClient) -> None:
    calls = [asyncio.create_task(collect(client, prompt=(n,), max_tokens=5000)) for n in range(5)]
    # Long enough that none is finished: all five are open or not yet sent.
    await asyncio.sleep(0.1)
    os.kill(client.pid, signal.SIGKILL)
    for result in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(result, EngineGone)
    assert client.gone
    with pytest.raises(EngineGone):
        await collect(client)
    with pytest.raises(EngineGone):
        await client.stats()


async def test_signals_of_a_terminal_do_not_make_it_talk(client: EngineClient) -> None:
    os.kill(client.pid, signal.SIGINT)
    assert (await collect(client))[1] == "length"
    os.kill(client.pid, signal.SIGTERM)
    wait_until_dead_soon = asyncio.to_thread(wait_until_dead, client.pid)
    await wait_until_dead_soon
    with pytest.raises(EngineGone) as caught:
        await collect(client)
    assert "Traceback" not in str(caught.value)


async def test_closing_ends_the_process_and_its_calls(options: EngineOptions) -> None:
    client = await EngineClient.start(options, VOCABULARY)
    call = asyncio.create_task(collect(client, max_tokens=5000))
    await asyncio.sleep(0.05)
    await client.close()
    await client.close()
    assert not is_alive(client.pid)
    with pytest.raises(EngineGone, match="closed"):
        await call


PARENT = """
import asyncio, sys
from perilune.engine.client import EngineClient
from perilune.engine.protocol import EngineOptions, Vocabulary

async def main():
    vocabulary = Vocabulary(tokens=(), special_ids=(), eos_id=0)
    client = await EngineClient.start(EngineOptions(checkpoint=sys.argv[1], cache_tokens=8000), vocabulary)
    print(client.pid, flush=True)
    async for _ in client.generate(prompt=(1,), max_tokens=7000):
        pass

asyncio.run(main())
"""


def test_the_engine_dies_with_a_killed_client(options: EngineOptions) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PARENT, options.checkpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as parent:
        assert parent.stdout is not None
        engine = int(parent.stdout.readline())
        assert is_alive(engine)
        parent.kill()
    wait_until_dead(engine)


async def test_what_keeps_it_from_starting_is_said(tmp_path: Path, options: EngineOptions) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        await EngineClient.start(msgspec.structs.replace(options, checkpoint=str(tmp_path)), VOCABULARY)
    with pytest.raises(ConfigError, match="cache_tokens"):
        await EngineClient.start(msgspec.structs.replace(options, cache_tokens=1), VOCABULARY)


def test_frames_survive_any_cut() -> None:
    messages = [Generate(id=7, prompt=(1, 2), max_tokens=3), Abort(7)]
    data = encode_frame(messages[:1]) + encode_frame(messages) + encode_frame([])
    for piece in (1, 3, 1000):
        reader = command_reader()
        got = [m for at in range(0, len(data), piece) for m in reader.feed(data[at : at + piece])]
        assert got == [messages[0], *messages]
    with pytest.raises(msgspec.DecodeError):
        command_reader().feed(b"\xff\xff\xff\xff garbage")
