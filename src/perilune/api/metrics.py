"""GET /metrics: what happened since the process began, as Prometheus reads it.

Labels are few and never come from clients: routes are those of the table, models those of the price book.
"""

from __future__ import annotations

import os
import resource
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from starlette.types import Receive, Scope, Send

from perilune import __version__
from perilune.accounts.accounts import Accounts
from perilune.accounts.usage import usd
from perilune.backends.base import Backend
from perilune.backends.members import STATES, Member
from perilune.backends.router import members_of

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"})
OTHER = "other"
TEXT = b"text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]


class HttpCounters:
    """Answers by route, and how long they took."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, str, int]] = Counter()
        """(route, method, status) -> answers."""
        self._times: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(SECONDS) + 1))
        self._sums: defaultdict[str, float] = defaultdict(float)
        self.began = time.time()

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("perilune.route", OTHER)
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self.answers[route, method, status] += 1
        self._times[route][bisect_left(SECONDS, seconds)] += 1
        self._sums[route] += seconds

    def histogram(self) -> Iterable[tuple[str, Labels, str]]:
        """(suffix of the name, labels, value)."""
        for route, times in self._times.items():
            total = 0
            for bound, count in zip((*map(str, SECONDS), "+Inf"), times, strict=True):
                total += count
                yield "_bucket", {"route": route, "le": bound}, str(total)
            yield "_sum", {"route": route}, f"{self._sums[route]:.6f}"
            yield "_count", {"route": route}, str(total)


class Metrics:
    """The endpoint."""

    def __init__(self, http: HttpCounters, accounts: Accounts, backend: Backend) -> None:
        self._http = http
        self._accounts = accounts
        self._backend = backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        data = self.text(await members_of(self._backend)).encode()
        headers = [(b"content-type", TEXT), (b"content-length", b"%d" % len(data))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    def text(self, members: Sequence[Member]) -> str:
        page = _Page()
        page.add("perilune_info", "gauge", "Which Perilune this is.", [({"version": __version__}, "1")])
        self._add_http(page)
        self._add_money(page)
        _add_backends(page, members)
        _add_process(page, self._http.began)
        return page.text()

    def _add_http(self, page: _Page) -> None:
        answers = [
            ({"route": route, "method": method, "status": str(status)}, str(count))
            for (route, method, status), count in self._http.answers.items()
        ]
        page.add("perilune_http_requests_total", "counter", "Answers by route and status.", answers)
        page.head("perilune_http_request_seconds", "histogram", "From request to the answer's last byte.")
        for suffix, labels, value in self._http.histogram():
            page.line(f"perilune_http_request_seconds{suffix}", labels, value)

    def _add_money(self, page: _Page) -> None:
        seen = self._accounts.counters
        calls = [
            ({"price": price, "outcome": outcome}, str(count))
            for (price, outcome), count in seen.calls.items()
        ]
        page.add("perilune_calls_total", "counter", "Settled model calls and web searches.", calls)
        tokens = [
            ({"price": price, "kind": kind}, str(count)) for (price, kind), count in seen.tokens.items()
        ]
        page.add("perilune_tokens_total", "counter", "Tokens of settled calls.", tokens)
        charged = [({"price": price}, usd(nano)) for price, nano in seen.nano_usd.items()]
        page.add("perilune_charged_usd_total", "counter", "Charged for settled calls, in USD.", charged)
        refused = [({"type": code}, str(count)) for code, count in seen.refusals.items()]
        page.add("perilune_refused_total", "counter", "Calls that a limit or the balance refused.", refused)
        running = str(self._accounts.limits.running)
        page.add("perilune_calls_running", "gauge", "Model calls under way.", [({}, running)])


def _add_backends(page: _Page, members: Sequence[Member]) -> None:
    """Their names and models are the operator's own words."""
    states = [
        ({"backend": one.name, "model": one.model, "state": state}, str(int(one.state == state)))
        for one in members
        for state in STATES
    ]
    said = "1 for the state a backend is in: calls go to closed ones, and one at a time to half open ones."
    page.add("perilune_backend_state", "gauge", said, states)
    running = [
        ({"backend": one.name, "model": one.model}, str(one.running))
        for one in members
        if one.running is not None
    ]
    page.add("perilune_backend_calls_running", "gauge", "Calls under way at a backend.", running)


def _add_process(page: _Page, began: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = f"{used.ru_utime + used.ru_stime:.3f}"
    page.add("process_cpu_seconds_total", "counter", "CPU time of the server's process.", [({}, cpu)])
    page.add("process_start_time_seconds", "gauge", "When the server began.", [({}, f"{began:.3f}")])
    if (size := _resident_bytes()) is not None:
        page.add(
            "process_resident_memory_bytes", "gauge", "Memory of the server's process.", [({}, str(size))]
        )


def _resident_bytes() -> int | None:
    """None where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class _Page:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def head(self, name: str, kind: str, said: str) -> None:
        self._lines += [f"# HELP {name} {said}", f"# TYPE {name} {kind}"]

    def line(self, name: str, labels: Labels, value: str) -> None:
        shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        self._lines.append(f"{name}{{{shown}}} {value}" if shown else f"{name} {value}")

    def add(self, name: str, kind: str, said: str, values: Iterable[tuple[Labels, str]]) -> None:
        self.head(name, kind, said)
        for labels, value in values:
            self.line(name, labels, value)

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
