"""Rate limits: none let in beyond the tier, none refused below it, and a refusal counts nowhere."""

from __future__ import annotations

import random

import pytest

from perilune.accounts.limits import DAY_S, MINUTE_S, Gate, Limits, Standing, Window
from perilune.accounts.tiers import Tier
from perilune.errors import LimitReached

WHO = "org-1<ak-2>"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def admitted(limits: Limits, tier: Tier, tokens: int = 1) -> Gate | None:
    try:
        return limits.enter(1, tier, tokens, WHO)
    except LimitReached:
        return None


def test_exactly_so_many_at_one_time(clock: Clock) -> None:
    limits, tier = Limits(clock), Tier("t", concurrency=3)
    gates = [gate for _ in range(10) if (gate := admitted(limits, tier))]
    assert len(gates) == 3
    gates[0].leave()
    gates[0].leave()  # only once
    assert admitted(limits, tier) is not None
    with pytest.raises(LimitReached, match="max concurrency: 3, please try again after 1 seconds") as caught:
        limits.enter(1, tier, 1, WHO)
    assert (caught.value.retry_after_s, caught.value.passing) == (1.0, True)
    assert str(caught.value).startswith(f"Your account {WHO} request reached organization")
    assert limits.running == 3


def test_exactly_so_many_in_any_minute(clock: Clock) -> None:
    limits, tier = Limits(clock), Tier("t", rpm=3)
    for at in (0.0, 10.0, 20.0):
        clock.now = 1000 + at
        limits.enter(1, tier, 1, WHO).leave()
    clock.now = 1030.0
    with pytest.raises(LimitReached, match="max RPM: 3, please try again after 30 seconds") as caught:
        limits.enter(1, tier, 1, WHO)
    assert caught.value.retry_after_s == 30.0
    clock.now = 1059.999
    assert admitted(limits, tier) is None
    clock.now = 1060.0
    assert admitted(limits, tier) is not None
    assert admitted(limits, tier) is None  # the refusals before counted nowhere


def test_tokens_of_a_minute_and_of_a_day(clock: Clock) -> None:
    limits, tier = Limits(clock), Tier("t", tpm=100, tpd=250)
    assert admitted(limits, tier, 60) is not None
    with pytest.raises(LimitReached, match="TPM rate limit, current:60, limit:100") as caught:
        limits.enter(1, tier, 41, WHO)
    assert caught.value.retry_after_s == MINUTE_S
    assert admitted(limits, tier, 40) is not None
    clock.now += MINUTE_S
    assert admitted(limits, tier, 100) is not None
    clock.now += MINUTE_S
    with pytest.raises(LimitReached, match="TPD rate limit, current:200, limit:250"):
        limits.enter(1, tier, 51, WHO)
    assert admitted(limits, tier, 50) is not None
    assert limits.standing(1) == Standing(4, requests=0, tokens=50, day_tokens=250, requests_clear_s=0.0)
    clock.now = 1000 + DAY_S
    assert admitted(limits, tier, 100) is not None  # the first hundred has left the day


def test_a_call_larger_than_the_limit_is_told_that_waiting_is_pointless(clock: Clock) -> None:
    with pytest.raises(LimitReached, match=r"asks for 101 tokens \(lower max_tokens") as caught:
        Limits(clock).enter(1, Tier("t", tpm=100), 101, WHO)
    assert (caught.value.retry_after_s, caught.value.passing) == (None, False)


def test_an_undone_call_counts_nowhere(clock: Clock) -> None:
    limits, tier = Limits(clock), Tier("t", concurrency=1, rpm=1, tpm=10, tpd=10)
    gate = limits.enter(1, tier, 10, WHO)
    clock.now += 1
    gate.undo()
    gate.undo()
    assert limits.standing(1) == Standing(0, 0, 0, 0, 0.0)
    assert admitted(limits, tier, 10) is not None


def test_organisations_do_not_share(clock: Clock) -> None:
    limits, tier = Limits(clock), Tier("t", rpm=1)
    limits.enter(1, tier, 1, WHO)
    limits.enter(2, tier, 1, WHO)
    assert admitted(limits, tier) is None


def test_no_limit_is_no_limit(clock: Clock) -> None:
    limits = Limits(clock)
    assert all(admitted(limits, Tier("free"), 10**9) for _ in range(5000))


@pytest.mark.parametrize("seed", range(5))
def test_never_beyond_never_short(clock: Clock, seed: int) -> None:
    """Against a plain list of everything that was let in, at random times coarser than a grain."""
    chance = random.Random(seed)
    limits, tier = Limits(clock), Tier("t", concurrency=5, rpm=20, tpm=600, tpd=3000)
    running: list[Gate] = []
    taken: list[tuple[float, int]] = []
    refused = 0
    for _ in range(3000):
        clock.now += chance.choice((0.0, 0.02, 1.0, 7.0))
        if running and chance.random() < 0.6:
            running.pop(chance.randrange(len(running))).leave()
        tokens = chance.randrange(1, 60)
        minute = [size for at, size in taken if at + MINUTE_S > clock.now]
        day = sum(size for at, size in taken if at + DAY_S > clock.now)
        fits = len(running) < 5 and len(minute) < 20 and sum(minute) + tokens <= 600 and day + tokens <= 3000
        gate = admitted(limits, tier, tokens)
        assert (gate is not None) == fits
        if gate is None:
            refused += 1
            if chance.random() < 0.02:
                clock.now += DAY_S / 3
        else:
            running.append(gate)
            taken.append((clock.now, tokens))
    assert 100 < refused < 2900


def test_a_window_s_memory_is_bounded() -> None:
    window = Window(MINUTE_S)
    for number in range(200_000):
        now = number * 0.001
        window.expire(now)
        window.take(1, now)
    assert len(window._entries) <= 6100
    assert 60_000 <= window.total <= 60_011
