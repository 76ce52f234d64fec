"""How long a failed model call waits: longer each time, and never less than it was asked to."""

from __future__ import annotations

from itertools import takewhile

import pytest

from perilune.errors import BackendRateLimited, BackendUnreachable, LimitReached, PeriluneError
from perilune.swarm.model_calls import Patience


def pauses(error: PeriluneError) -> list[float]:
    patience = Patience()
    told = (patience.pause(failed, error) for failed in range(1, 100))
    return [pause for pause in takewhile(lambda pause: pause is not None, told) if pause is not None]


@pytest.mark.parametrize(
    "error",
    [
        BackendUnreachable("down"),
        BackendRateLimited("slow down", retry_after_s=1.0),
        LimitReached("max concurrency: 1", passing=True, retry_after_s=1.0),
    ],
)
def test_a_call_waits_longer_each_time_also_where_a_second_is_asked_for(error: PeriluneError) -> None:
    """A place among the calls under way may come free only when a long answer has ended."""
    assert pauses(error) == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]


def test_a_call_waits_as_long_as_it_is_asked_to_within_reason() -> None:
    assert pauses(BackendRateLimited("slow down", retry_after_s=12.0))[:6] == [12.0] * 4 + [16.0, 32.0]
    assert set(pauses(LimitReached("max RPM", passing=True, retry_after_s=500.0))) == {60.0}
