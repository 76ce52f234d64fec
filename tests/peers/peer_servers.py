"""The servers of other engines with copies of nano, each behind a `perilune serve` of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from peer_engines import NANO, PEER_ENVIRONMENT, ROOT, python_of
from scripts.gguf_copy import write_gguf
from scripts.hf_copy import write_hf
from tests.clients.client_servers import perilune_serve

CONTEXT = 4096
MODEL = "perilune-nano"
MODEL_THERE = "nano-there"
TEMPLATE = ROOT / "scripts" / "k26_flat.jinja"
START_S = 300.0
STOP_S = 60.0


@dataclass(frozen=True)
class Peer:
    engine: str
    """As a `[[backends]]` table names it."""
    url: str
    """Of the engine's own server, up to /v1."""
    pid: int
    """Of that server."""
    api: str
    """Of the Perilune server in front of it."""
    key: str
    admin: str
    """Its admin door."""
    home: Path

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")


@dataclass(frozen=True)
class Launch:
    command: Sequence[str]
    environment: Mapping[str, str]


@asynccontextmanager
async def peer(engine: str, folder: Path) -> AsyncIterator[Peer]:
    """Skips the test where the engine is not installed."""
    launch, port = LAUNCHES[engine], free_port()
    home = folder / "home"
    home.mkdir()
    url = f"http://127.0.0.1:{port}/v1"
    async with running(launch(folder, port), folder / "engine.log", url) as pid:
        table = {"name": "peer", "url": url, "serves": MODEL, "engine": engine, "tokenizer": str(NANO)}
        # vLLM says how much it takes; llama.cpp's server does not.
        lines = [f'{name} = "{value}"' for name, value in table.items()] + [f"context = {CONTEXT}"]
        (home / "perilune.toml").write_text("\n".join(["[[backends]]", *lines, ""]))
        door = free_port()
        async with perilune_serve(home, admin_port=door) as (api, key):
            yield Peer(engine, url, pid, api, key, f"http://127.0.0.1:{door}/admin", home)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# ---- how each is started


def of_vllm(folder: Path, port: int) -> Launch:
    python = python_of("vllm")
    write_hf(NANO, folder / "nano", TEMPLATE.read_text())
    flags = {
        "model": folder / "nano",
        "served-model-name": MODEL_THERE,
        "dtype": "float32",
        "max-model-len": CONTEXT,
        "max-num-seqs": 4,
        "host": "127.0.0.1",
        "port": port,
        "tool-call-parser": "kimi_k2",
    }
    switches = ("enforce-eager", "enable-auto-tool-choice", "enable-prompt-tokens-details")
    told = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", *told, *(f"--{one}" for one in switches)]
    environment = {
        "VLLM_MLA_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return Launch(command, environment)


def of_llama_cpp(folder: Path, port: int) -> Launch:
    python = python_of("llama")
    write_gguf(NANO, folder / "nano.gguf", TEMPLATE.read_text())
    flags = {
        "model": folder / "nano.gguf",
        "model_alias": MODEL_THERE,
        "n_ctx": CONTEXT,
        "n_threads": 1,
        "n_threads_batch": 1,
        "type_k": 0,
        "type_v": 0,
        "host": "127.0.0.1",
        "port": port,
    }
    told = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return Launch([python, "-m", "llama_cpp.server", *told], {})


LAUNCHES = {"vllm": of_vllm, "llama-cpp": of_llama_cpp}
"""An engine, as `[[backends]]` names it -> how its server is started."""


# ---- running one


@asynccontextmanager
async def running(launch: Launch, log: Path, url: str) -> AsyncIterator[int]:
    """The process number of a server that answers at `url`."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    environment |= {**PEER_ENVIRONMENT, **launch.environment}
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *launch.command, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        await _answering(process, url, log)
        yield process.pid
    finally:
        await _end(process)


async def _answering(process: asyncio.subprocess.Process, url: str, log: Path) -> None:
    async with asyncio.timeout(START_S), aiohttp.ClientSession() as web:
        while True:
            assert process.returncode is None, log.read_text(errors="replace")[-6000:]
            try:
                async with web.get(f"{url}/models") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.5)


async def _end(process: asyncio.subprocess.Process) -> None:
    """It and all that it started, which has one group with it and no other."""
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            print("the engine's server did not end by itself", file=sys.stderr)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    await process.wait()
