"""The circuit breaker, on a clock of its own."""

from perilune.backends.breaker import FAILURES, FIRST_REST_S, LONGEST_REST_S, Breaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def opened() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        assert breaker.admit()
        breaker.failed()
    return breaker, clock


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(Clock())
    for _ in range(FAILURES * 2):
        breaker.failed()
        breaker.succeeded()
    assert breaker.state == "closed"
    assert opened()[0].state == "open"
    assert not opened()[0].admit()


def test_one_call_tries_it_and_closes_it() -> None:
    breaker, clock = opened()
    clock.now += FIRST_REST_S
    assert breaker.state == "half open"
    assert [breaker.admit(), breaker.admit()] == [True, False]
    breaker.succeeded()
    assert [breaker.admit(), breaker.admit()] == [True, True]


def test_a_failed_try_opens_it_for_longer_up_to_a_limit() -> None:
    breaker, clock = opened()
    rests = []
    for _ in range(6):
        before = clock.now
        while not breaker.admit():
            clock.now += 1
        rests.append(clock.now - before)
        breaker.failed()
    assert rests == [FIRST_REST_S, 10, 20, 40, LONGEST_REST_S, LONGEST_REST_S]


def test_calls_that_were_under_way_when_it_opened_open_it_no_further() -> None:
    breaker, clock = opened()
    assert [breaker.failed() for _ in range(10)] == [0.0] * 10
    clock.now += FIRST_REST_S
    assert breaker.admit()
    assert breaker.failed() == 2 * FIRST_REST_S


def test_a_try_that_was_given_up_lets_the_next_one_in() -> None:
    breaker, clock = opened()
    clock.now += FIRST_REST_S
    assert breaker.admit()
    breaker.released()
    assert breaker.admit()


def test_a_look_that_finds_it_there_ends_the_rest_early() -> None:
    breaker, _ = opened()
    breaker.wake()
    assert breaker.state == "half open"
    assert breaker.admit()


def test_a_refused_key_opens_it_at_once_and_a_wish_for_rest_is_granted() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    breaker.failed(at_once=True)
    assert breaker.state == "open"
    asked = Breaker(clock)
    asked.rest(7)
    clock.now += 6.9
    assert not asked.admit()
    clock.now += 0.1
    assert asked.admit()
