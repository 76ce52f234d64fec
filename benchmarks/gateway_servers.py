"""The servers that `gateway.py` measures, each a process: the endpoint, `perilune serve`, LiteLLM's proxy and
the bare pass-through."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gateway_bare
from gateway_traffic import tree

HERE = Path(__file__).resolve().parent
TRAFFIC = HERE / "gateway_traffic.py"
SOURCE = HERE.parent / "src"
STARTING_S = 180.0
TIERS = '[[tier]]\nname = "bench"\nconcurrency = 5000\nrpm = 100_000_000\ntpm = 100_000_000_000\ntpd = 0\n'
"""High, but limits: every call is counted in all windows."""
MASTER_KEY = "sk-bench"
PEER_CONFIG = """
model_list:
  - model_name: mock
    litellm_params:
      model: openai/mock
      api_base: http://127.0.0.1:{port}/v1
      api_key: none
      input_cost_per_token: 0.00000095
      output_cost_per_token: 0.000004
general_settings:
  master_key: {key}
litellm_settings:
  telemetry: false
  request_timeout: 600
"""


@dataclass(frozen=True)
class Server:
    """A gateway under test, or the endpoint itself."""

    prefix: str
    pid: int
    port: int
    key: str = ""


class Cores:
    """Which cores the server and its surroundings get."""

    def __init__(self) -> None:
        mine = sorted(os.sched_getaffinity(0))
        self.server = set(mine[:1])
        self.around = set(mine[1:2]) or self.server

    @contextlib.contextmanager
    def on(self, cores: set[int]) -> Iterator[None]:
        """Processes started within run on these cores."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


@contextlib.contextmanager
def running(
    command: list[str], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process, ended at the end. Its errors go to `log`."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **(env or {})}
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextlib.contextmanager
def endpoint(folder: Path) -> Iterator[Server]:
    with running([sys.executable, str(TRAFFIC), "endpoint"], folder / "endpoint.log") as process:
        assert process.stdout is not None
        yield Server("direct_", process.pid, int(process.stdout.readline()))


@contextlib.contextmanager
def perilune(folder: Path, model: Server) -> Iterator[Server]:
    """`perilune serve` with everything on that a paying customer's call passes."""
    home = folder / "home"
    home.mkdir()
    (home / "tiers.toml").write_text(TIERS)
    env = {
        "PYTHONPATH": str(SOURCE),
        "PERILUNE_MODEL_URL": f"http://127.0.0.1:{model.port}/v1",
        "PERILUNE_MODEL_NAME": "mock",
    }
    (home / "perilune.toml").write_text(
        f'prepaid = true\ntier = "bench"\ntier_book = {json.dumps(str(home / "tiers.toml"))}\n'
    )
    command = [sys.executable, "-m", "perilune"]
    top_up = [*command, "account", "topup", "1000000", "--home", str(home)]
    subprocess.run(top_up, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **env})
    serve = [*command, "serve", "--home", str(home), "--port", "0"]
    with running(serve, folder / "perilune.log", env) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        if " at http" not in told:
            raise SystemExit(f"perilune did not start:\n{(folder / 'perilune.log').read_text()}")
        key = json.loads((home / "keys.json").read_text())["project_key"]
        yield Server("", process.pid, int(told.rpartition(":")[2].partition("/")[0]), key)


@contextlib.contextmanager
def litellm(folder: Path, model: Server, python: str) -> Iterator[Server]:
    config, port = folder / "litellm.yaml", free_port()
    config.write_text(PEER_CONFIG.format(port=model.port, key=MASTER_KEY))
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    program = str(Path(python).parent / "litellm")
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    with running([python, *command], folder / "litellm.log", env) as process:
        wait_until(lambda: answers(port), process, folder / "litellm.log")
        yield Server("litellm_", process.pid, port, MASTER_KEY)


@contextlib.contextmanager
def bare(folder: Path, model: Server) -> Iterator[Server]:
    port = free_port()
    env = {"BARE_URL": f"http://127.0.0.1:{model.port}/v1/chat/completions"}
    uvicorn = [sys.executable, "-m", "uvicorn", "gateway_bare:app", "--app-dir", str(HERE)]
    quiet = ["--log-level", "error", "--no-access-log"]
    with running([*uvicorn, "--port", str(port), *quiet], folder / "bare.log", env) as process:
        wait_until(lambda: listens(port), process, folder / "bare.log")
        yield Server("bare_", process.pid, port, gateway_bare.KEY)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def wait_until(is_up: Callable[[], bool], process: subprocess.Popen[str], log: Path) -> None:
    patience = time.monotonic() + STARTING_S
    while not is_up():
        if process.poll() is not None or time.monotonic() > patience:
            raise SystemExit(f"{log.stem} did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.5)


def listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def has_litellm(python: str) -> bool:
    look = (
        "import importlib.util as u, sys; sys.exit(not (u.find_spec('litellm') and u.find_spec('fastapi')))"
    )
    return subprocess.run([python, "-c", look], check=False, capture_output=True).returncode == 0


def rss_mb(pid: int) -> float:
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in tree(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
