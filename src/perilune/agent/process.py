"""Run one child process to its end: merged output capped to head and tail, wall clock, process group."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CHUNK = 65_536
TERM_GRACE_S = 2.0
DRAIN_GRACE_S = 1.0


@dataclass(frozen=True)
class ProcessResult:
    exit_code: int
    """As the shell shows it: 128 + signal for a killed process."""
    output: str
    """stdout and stderr in the order written, the middle left out beyond the cap."""
    timed_out: bool
    seconds: float
    """Wall clock."""


class HeadTail:
    """Keeps the first 60 % and the last 40 % of `cap` bytes, whatever is fed."""

    def __init__(self, cap: int) -> None:
        self._head_cap = cap * 6 // 10
        self._tail_cap = cap - self._head_cap
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._fed = 0

    def feed(self, data: bytes) -> None:
        self._fed += len(data)
        room = self._head_cap - len(self._head)
        self._head += data[:room]
        rest = data[room:] if room > 0 else data
        if not rest:
            return
        self._tail.append(rest)
        self._tail_size += len(rest)
        while self._tail_size - len(self._tail[0]) >= self._tail_cap:
            self._tail_size -= len(self._tail.popleft())

    def text(self) -> str:
        tail = b"".join(self._tail)[-self._tail_cap :]
        elided = self._fed - len(self._head) - len(tail)
        if elided <= 0:
            return (bytes(self._head) + tail).decode("utf-8", "replace")
        head, end = (part.decode("utf-8", "replace") for part in (bytes(self._head), tail))
        return f"{head}\n[... {elided} bytes left out ...]\n{end}"


async def run_process(
    argv: Sequence[str],
    *,
    cwd: Path | None,
    env: Mapping[str, str],
    seconds: float,
    output_bytes: int,
) -> ProcessResult:
    """Run to the end or to the limit; nothing of its process group is alive afterwards.

    Raises OSError when the program cannot be started."""
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=cwd,
        env=dict(env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    kept = HeadTail(output_bytes)
    reading = asyncio.ensure_future(_drain(process.stdout, kept))
    timed_out = False
    try:
        try:
            await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            timed_out = True
            _signal_group(process.pid, signal.SIGTERM)
            await _wait_briefly(process)
    finally:
        # Also on success and on cancellation: a background child must not outlive its command.
        _signal_group(process.pid, signal.SIGKILL)
        await process.wait()
        await asyncio.wait([reading], timeout=DRAIN_GRACE_S)
        reading.cancel()
    code = process.returncode if process.returncode is not None else -signal.SIGKILL
    return ProcessResult(128 - code if code < 0 else code, kept.text(), timed_out, time.monotonic() - began)


async def _drain(stream: asyncio.StreamReader, kept: HeadTail) -> None:
    while data := await stream.read(CHUNK):
        kept.feed(data)


async def _wait_briefly(process: asyncio.subprocess.Process) -> None:
    try:
        await asyncio.wait_for(process.wait(), TERM_GRACE_S)
    except TimeoutError:
        return


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
