"""When a call that failed before its first byte is tried again, and after how long."""

from __future__ import annotations

from perilune.errors import (
    BackendError,
    BackendRateLimited,
    BackendUnreachable,
    PeriluneError,
)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 20.0
LONGEST_RETRY_AFTER_S = 60.0
"""An endpoint that asks for more patience than this is reported, not waited for."""


def is_passing(error: BackendError) -> bool:
    """Overload, a start or a defect of the endpoint; a refusal of the request or the key is final."""
    return isinstance(error, BackendRateLimited | BackendUnreachable) or type(error) is BackendError


class Passing(Exception):
    """Nothing of an answer has arrived, and the next try may do better."""

    def __init__(self, error: BackendError) -> None:
        super().__init__(error.message)
        self.error = error


def retry_pause(error: PeriluneError, failures: int, retries: int, chance: float) -> float | None:
    """Seconds to wait after so many earlier failures before the next try; None when there is none."""
    asked = error.retry_after_s if isinstance(error, BackendRateLimited) else None
    if failures >= retries or (asked or 0.0) > LONGEST_RETRY_AFTER_S:
        return None
    backoff = min(FIRST_PAUSE_S * 2.0**failures, LONGEST_PAUSE_S)
    return max(backoff * (0.5 + chance / 2), asked or 0.0)
