"""A circuit breaker: an endpoint that keeps failing is left alone for a while, then tried by one call.

closed     calls go there
open       none goes there until the time is over
half open  one call goes there; it closes the breaker when its answer begins, or opens it again for longer
"""

from __future__ import annotations

import time
from collections.abc import Callable

FAILURES = 3
"""One after another, that open the breaker."""
FIRST_REST_S = 5.0
LONGEST_REST_S = 60.0


class Breaker:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._rest_s = 0.0
        self._until: float | None = None
        """Open until then; None while closed."""
        self._trying = False

    @property
    def state(self) -> str:
        if self._until is None:
            return "closed"
        return "open" if self._trying or self._clock() < self._until else "half open"

    def admit(self) -> bool:
        """Whether a call may go there now. Who is let in tells by one of the methods below how it ended."""
        if self._until is None:
            return True
        if self.state == "open":
            return False
        self._trying = True
        return True

    def begun(self) -> None:
        """An answer has begun: the endpoint is there, so a trial is over. What was counted stays until an
        answer is whole: one that always breaks off is no better than one that never begins."""
        self._until, self._trying = None, False

    def succeeded(self) -> None:
        self._failures, self._rest_s, self._until, self._trying = 0, 0.0, None, False

    def failed(self, *, at_once: bool = False) -> float:
        """Seconds that it is left alone from now on; 0 where it is not. `at_once`: what no other call would
        do better, such as a refused key."""
        tried, self._trying = self._trying, False
        self._failures += 1
        if self._until is not None and not tried:  # of a call that was let in before
            return 0.0
        if not (at_once or tried or self._failures >= FAILURES):
            return 0.0
        self._rest_s = min(max(FIRST_REST_S, self._rest_s * 2), LONGEST_REST_S)
        self.rest(self._rest_s)
        return self._rest_s

    def rest(self, seconds: float) -> None:
        """Let no call in for so long: the endpoint asked for it."""
        self._trying = False
        self._until = max(self._until or 0.0, self._clock() + seconds)

    def released(self) -> None:
        """A call was given up before it showed anything."""
        self._trying = False

    def wake(self) -> None:
        """A look found the endpoint there: the next call may try it."""
        if self._until is not None:
            self._until = min(self._until, self._clock())
