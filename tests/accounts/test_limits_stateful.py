"""Rate limits against a plain list of all that was let in, under any order of calls, ends and waits.

None is let in beyond a limit. None is refused below it: a refused call would not have fitted either had each
window been longer by its grain, the resolution at which places come free.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from perilune.accounts.limits import BUSY_RETRY_S, DAY_S, GRAINS, MINUTE_S, Gate, Limits
from perilune.accounts.tiers import Tier
from perilune.errors import LimitReached

TIER = Tier("t", concurrency=4, rpm=6, tpm=100, tpd=260)
WAITS = st.one_of(
    st.sampled_from([0.0, 0.001, 0.009, MINUTE_S, DAY_S, MINUTE_S - 0.001, DAY_S / 4]),
    st.floats(0, 2 * MINUTE_S),
    st.floats(0, DAY_S),
)


class LimitsMachine(RuleBasedStateMachine):
    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.now = 5000.0
        self.limits = Limits(lambda: self.now)
        self.taken: list[tuple[float, int]] = []
        self.under_way: dict[int, tuple[float, int]] = {}
        """id of a gate -> what it took; until it left or was undone."""

    def within(self, span: float) -> list[int]:
        return [tokens for at, tokens in self.taken if at + span > self.now]

    def fits(self, tokens: int, stretch: float) -> bool:
        """Whether the limits allow the call, were each window longer by so many grains."""
        minute = self.within(MINUTE_S * (1 + stretch / GRAINS))
        day = self.within(DAY_S * (1 + stretch / GRAINS))
        return (
            len(self.under_way) < TIER.concurrency
            and len(minute) < TIER.rpm
            and sum(minute) + tokens <= TIER.tpm
            and sum(day) + tokens <= TIER.tpd
        )

    @rule(seconds=WAITS)
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=running, tokens=st.integers(1, 110))
    def call(self, tokens: int) -> Gate | None:
        try:
            gate = self.limits.enter(1, TIER, tokens, "org-1<ak-2>")
        except LimitReached as refusal:
            assert not self.fits(tokens, stretch=1), f"refused although it fits: {refusal}"
            assert refusal.passing == (refusal.retry_after_s is not None)
            assert refusal.passing or tokens > TIER.tpm
            return None
        assert self.fits(tokens, stretch=0), "let in beyond a limit"
        self.taken.append((self.now, tokens))
        self.under_way[id(gate)] = self.taken[-1]
        return gate

    @rule(tokens=st.integers(1, 100))
    def call_and_keep_to_the_waits(self, tokens: int) -> None:
        """Who waits as long as each refusal says is let in soon: no limit is met twice."""
        for _ in range(4):
            try:
                self.limits.enter(1, TIER, tokens, "org-1<ak-2>").undo()
                return
            except LimitReached as refusal:
                assert refusal.retry_after_s is not None
                self.now += refusal.retry_after_s
                if "concurrency" in refusal.message:
                    assert refusal.retry_after_s == BUSY_RETRY_S
                    return
        raise AssertionError("four refusals in a row")

    @rule(gate=consumes(running))
    def end(self, gate: Gate | None) -> None:
        if gate is not None:
            gate.leave()
            gate.leave()
            del self.under_way[id(gate)]

    @rule(gate=consumes(running))
    def undo(self, gate: Gate | None) -> None:
        if gate is not None:
            gate.undo()
            gate.undo()
            self.taken.remove(self.under_way.pop(id(gate)))

    @invariant()
    def stands_where_the_list_says(self) -> None:
        standing = self.limits.standing(1)
        assert standing.running == self.limits.running == len(self.under_way)
        assert standing.requests >= len(self.within(MINUTE_S))
        assert standing.tokens >= sum(self.within(MINUTE_S))
        assert standing.day_tokens >= sum(self.within(DAY_S))


TestLimits = LimitsMachine.TestCase
TestLimits.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, derandomize=True, database=None
)
