"""The line that every answer leaves in the log.

It goes the way of all log lines; where `perilune serve` owns the process, straight to where they end, with
the lines of all answers that end in the same turn of the loop: the way of all costs as much as reading and
checking a request, and each write is a call of the system.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TextIO

log = logging.getLogger("perilune.api")

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class AccessLog:
    def __init__(self) -> None:
        self._stream: TextIO | None = None
        self._held: list[str] = []
        """Written before the loop waits again."""
        self._second = 0
        self._stamp = ""

    def shorten(self, stream: TextIO) -> None:
        """From now on lines go to `stream`, as if a handler with FORMAT wrote them there."""
        self._stream = stream

    def answered(self, line: str) -> None:
        if not log.isEnabledFor(logging.INFO):
            return
        if self._stream is None:
            log.info("%s", line)
            return
        if not self._held:
            asyncio.get_running_loop().call_soon(self._write, self._stream)
        self._held.append(line)

    def _write(self, stream: TextIO) -> None:
        lines, self._held = self._held, []
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._second))
        head = f"{self._stamp},{int(now % 1 * 1000):03d} INFO {log.name}: "
        try:
            stream.write("".join([f"{head}{line}\n" for line in lines]))
        except (OSError, ValueError):  # nobody reads it any more: logging knows what to do then
            self._stream = None
            for line in lines:
                log.info("%s", line)


access_log = AccessLog()
"""That of this process."""
