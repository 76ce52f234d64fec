"""The line that every answer leaves in the log.

It goes the way of all log lines; where `perilune serve` owns the process, straight to where they end, for
that way costs as much as reading and checking a request.
"""

from __future__ import annotations

import logging
import time
from typing import TextIO

log = logging.getLogger("perilune.api")

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class AccessLog:
    def __init__(self) -> None:
        self._stream: TextIO | None = None
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
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._second))
        try:
            self._stream.write(f"{self._stamp},{int(now % 1 * 1000):03d} INFO {log.name}: {line}\n")
        except (OSError, ValueError):  # nobody reads it any more: logging knows what to do then
            self._stream = None
            log.info("%s", line)


access_log = AccessLog()
"""That of this process."""
