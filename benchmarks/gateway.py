"""What the gateway costs: `python benchmarks/gateway.py [--quick] [--json] [--peer-python PYTHON]`.

A real `perilune serve` process stands before a model endpoint that costs next to nothing. Every call takes
the full path: key, rate limits, prepaid balance, ledger (opened before the call, settled before the last
byte, both committed, so that `kill -9` loses neither; the disk is told a moment later), metering, the OpenAI
dialect decoded and encoded on both sides.

    cpu_us_per_request  CPU of the server per call without streaming: 32 clients, answers of 8 words at once
    cpu_us_per_event    CPU per server-sent event: 300 streams of 100 words, 50 words a second each; all that
                        a stream costs, its request too, is divided by its words
    added_ms_p50, _p99  calls that arrive at random, 300 a second, at an endpoint that takes 50 ms: our
                        percentile less that of the same calls sent straight to the endpoint
    rss_mb              memory of the server after all that

The server has one core and the endpoint and the clients another, where there are two. CPU is user and system
time of the server's processes. `*_cores` says how busy each side was while measuring: near 1 for `clients`
or `endpoint` means that they, not the server, set the pace. `wal_sync_ms` is what one sync to the disk took.

A machine of another speed has other figures, so each run has a yardstick: `bare` (`gateway_bare.py`), a
pass-through of stock parts, gets the same calls. It takes 139 us a request and 42 us an event where the
targets were set, so what they allow is 2.2 and 1.4 times `bare`. CPU per event falls with the load, since
more events come at once: compare it with `bare` of the same run only.

`--peer-python` names an interpreter that has `litellm[proxy]`. It gets the same calls, as many as it can
take: its streams and its arrivals are a few, since CPU per event and added time would else be those of a
queue. It has a master key, a price table and no database, so it keeps no books.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gateway_bare import REFERENCE_US_PER_EVENT, REFERENCE_US_PER_REQUEST
from gateway_servers import TRAFFIC, Cores, Server, bare, endpoint, has_litellm, litellm, perilune, rss_mb
from gateway_traffic import Plan, Result


@dataclass(frozen=True)
class Load:
    """What one server is put under."""

    calls: Plan
    streams: Plan
    arrivals: Plan


FULL = Load(
    calls=Plan(0, clients=32, each=120),
    streams=Plan(0, stream=True, words=100, rate=50, clients=300, each=2),
    arrivals=Plan(0, wait_ms=50, clients=30, each=100, per_second=300),
)
QUICK = Load(
    calls=replace(FULL.calls, each=30),
    streams=replace(FULL.streams, each=1),
    arrivals=replace(FULL.arrivals, each=20),
)
PEER = Load(
    calls=Plan(0, clients=32, each=5),
    streams=replace(FULL.streams, clients=8, each=1),
    arrivals=replace(FULL.arrivals, clients=10, each=15, per_second=15),
)
"""LiteLLM takes about 55 calls, or 700 events, a second."""


# ---- measuring


class Bench:
    def __init__(self, cores: Cores, model: Server) -> None:
        self._cores = cores
        self._model = model
        self.runs: dict[str, list[float]] = {}

    def note(self, name: str, value: float) -> None:
        self.runs.setdefault(name, []).append(value)

    def load(self, server: Server, plan: Plan) -> Result:
        plan = replace(plan, port=server.port, key=server.key, watched=(server.pid, self._model.pid))
        command = [sys.executable, str(TRAFFIC), "load", json.dumps(asdict(plan))]
        with self._cores.on(self._cores.around):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"the clients failed:\n{done.stderr}")
        result = Result(**json.loads(done.stdout))
        if result.failed:
            print(
                f"{server.prefix or 'perilune'}: {result.failed} of {result.calls} calls failed",
                file=sys.stderr,
            )
            self.note(f"{server.prefix}failed", result.failed)
        return result

    def round(self, server: Server, load: Load) -> None:
        """All measurements of one server, once."""
        found = self.load(server, load.calls)
        self.note(f"{server.prefix}cpu_us_per_request", 1e6 * found.cpu_s[0] / found.calls)
        self.note(f"{server.prefix}requests_per_s", found.calls / found.wall_s)
        self._busy(f"{server.prefix}calls", found)
        found = self.load(server, load.streams)
        self.note(
            f"{server.prefix}cpu_us_per_event", 1e6 * found.cpu_s[0] / (found.calls * load.streams.words)
        )
        self.note(f"{server.prefix}stream_s_p50", found.p50_ms / 1000)
        self._busy(f"{server.prefix}streams", found)
        direct = self.load(self._model, load.arrivals)
        found = self.load(server, load.arrivals)
        self.note(f"{server.prefix}added_ms_p50", found.p50_ms - direct.p50_ms)
        self.note(f"{server.prefix}added_ms_p99", found.p99_ms - direct.p99_ms)
        self.note(f"{server.prefix}direct_ms_p50", direct.p50_ms)
        self.note(f"{server.prefix}direct_ms_p99", direct.p99_ms)
        self._busy(f"{server.prefix}arrivals", found)

    def _busy(self, part: str, found: Result) -> None:
        for who, used in zip(("server", "endpoint"), found.cpu_s, strict=True):
            self.note(f"{part}_{who}_cores", used / found.wall_s)
        self.note(f"{part}_clients_cores", found.own_cpu_s / found.wall_s)

    def figures(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in self.runs.items()}


def wal_sync_ms(folder: Path) -> float:
    """The median time of a small write that is synced, where the books lie."""
    times = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(50):
            file.write(bytes(4096))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def measure(peer: str | None, load: Load, rounds: int, folder: Path) -> dict[str, float]:
    cores = Cores()
    with contextlib.ExitStack() as stack:
        with cores.on(cores.around):
            model = stack.enter_context(endpoint(folder))
        bench = Bench(cores, model)
        with cores.on(cores.server):
            subjects = [(stack.enter_context(one(folder, model)), load) for one in (perilune, bare)]
            if peer:
                subjects.append((stack.enter_context(litellm(folder, model, peer)), PEER))
        for server, its in subjects:
            bench.load(server, replace(its.calls, each=max(2, its.calls.each // 5)))  # not measured
        for _ in range(rounds):
            bench.note("wal_sync_ms", wal_sync_ms(folder))
            for server, its in subjects:
                bench.round(server, its)
        for server, _ in subjects:
            bench.note(f"{server.prefix}rss_mb", rss_mb(server.pid))
        return bench.figures()


# ---- telling

TARGETS = {
    "cpu_us_per_request": 300,
    "cpu_us_per_event": 60,
    "added_ms_p50": 1,
    "added_ms_p99": 5,
    "rss_mb": 120,
}


YARDSTICK = {
    "cpu_us_per_request": REFERENCE_US_PER_REQUEST,
    "cpu_us_per_event": REFERENCE_US_PER_EVENT,
}


def report(figures: Mapping[str, float], rounds: int, has_peer: bool) -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"Python {platform.python_version()}, {machine}; medians of {rounds}")
    heads = ("perilune", "target", "bare", "to bare", "allowed", "litellm", "ratio")
    print(f"  {'':<20}{''.join(f'{head:>12}' for head in heads)}")
    for name, target in TARGETS.items():
        ours, theirs = figures[name], figures.get(f"litellm_{name}")
        thin = figures[f"bare_{name}"]
        to_bare = f"{ours / thin:.2f}" if name in YARDSTICK else ""
        allowed = f"{target / YARDSTICK[name]:.2f}" if name in YARDSTICK else ""
        beside = f"{theirs:>12,.1f}{theirs / ours:>12,.0f}" if theirs is not None and ours > 0 else ""
        print(f"  {name:<20}{ours:>12,.1f}{target:>12}{thin:>12,.1f}{to_bare:>12}{allowed:>12}{beside}")
    print("  the rest:")
    for name, value in figures.items():
        if name.removeprefix("litellm_").removeprefix("bare_") not in TARGETS:
            print(f"    {name:<36}{value:>12,.2f}")
    for part in ("calls", "streams", "arrivals"):
        busy = sum(figures[f"{part}_{who}_cores"] for who in ("endpoint", "clients"))
        if busy > 0.9:
            print(f"  {part}: endpoint and clients kept {busy:.2f} cores busy: they set the pace")
    if not has_peer:
        print("  litellm: absent (pip install 'litellm[proxy]' elsewhere, then --peer-python)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", action="store_true", help="one flat JSON object on the last line")
    parser.add_argument("--peer-python", metavar="PYTHON", help="an interpreter that has litellm[proxy]")
    parser.add_argument("--folder", help="where the books lie meanwhile (default: the system's temporary)")
    options = parser.parse_args()
    peer: str | None = options.peer_python
    if peer and not has_litellm(peer):
        print(f"{peer} has no litellm[proxy]: no peer in this run")
        peer = None
    load, rounds = (QUICK, 1) if options.quick else (FULL, 5)
    with tempfile.TemporaryDirectory(prefix="perilune-bench-", dir=options.folder) as folder:
        figures = measure(peer, load, rounds, Path(folder))
    report(figures, rounds, peer is not None)
    if options.json:
        told: dict[str, Any] = {name: round(value, 3) for name, value in figures.items()}
        print(json.dumps(told))


if __name__ == "__main__":
    main()
