"""Rate limits of organisations, in memory: all of a tier's limits are checked first, then all are taken.

    gate = limits.enter(organisation_id, tier, tokens, who)     or LimitReached; a refusal counts nowhere
    gate.lower(tokens)                                           its answer was cut to what money covers
    gate.leave()                                                 the call has ended
    gate.undo()                                                  the call was refused elsewhere: as if never

Windows slide: what was taken at an instant counts until just as long after it. They are empty after a
restart of the process. Nothing here waits, so on one event loop nothing comes between check and taking.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from perilune.accounts.tiers import Tier
from perilune.errors import LimitReached

MINUTE_S = 60.0
DAY_S = 86_400.0
GRAINS = 6000
"""What is taken within this part of a window shares an entry and leaves with the last of it: the memory of
a window is bounded, and it frees a place at most 10 ms (of a minute) late."""
BUSY_RETRY_S = 1.0
"""When a place among the calls under way comes free nobody knows."""


class Window:
    """How much was taken in the last `span` seconds."""

    __slots__ = ("_entries", "_grain", "_span", "first_leaves", "total")

    def __init__(self, span: float) -> None:
        self._span = span
        self._grain = span / GRAINS
        self._entries: deque[list[float]] = deque()
        """[first taken, last taken, amount], oldest first."""
        self.total = 0
        self.first_leaves = math.inf
        """At the earliest: until then `expire` has nothing to do."""

    def expire(self, now: float) -> None:
        entries = self._entries
        while entries and entries[0][1] + self._span <= now:
            self.total -= int(entries.popleft()[2])
        self.first_leaves = entries[0][1] + self._span if entries else math.inf

    def take(self, amount: int, now: float) -> None:
        entries = self._entries
        self.total += amount
        if entries and now - entries[-1][0] < self._grain:
            entries[-1][1] = now
            entries[-1][2] += amount
        else:
            if not entries:
                self.first_leaves = now + self._span
            entries.append([now, now, amount])

    def give_back(self, amount: int, taken: float) -> None:
        """Undo a `take` at that instant; nothing to do once it has left the window."""
        for entry in reversed(self._entries):
            if entry[0] <= taken <= entry[1]:
                entry[2] -= amount
                self.total -= amount
                return

    def clear(self, now: float) -> float:
        """Seconds until all of it has left."""
        for _, last, amount in reversed(self._entries):
            if amount:
                left = last + self._span - now
                return left if left > 0.0 else 0.0
        return 0.0

    def wait(self, excess: int, now: float) -> float:
        """Seconds until at least so much has left."""
        for _, last, amount in self._entries:
            excess -= int(amount)
            if excess <= 0:
                return max(last + self._span - now, 0.0)
        return self._span


class _Meters:
    """What one organisation has taken."""

    __slots__ = ("day_tokens", "requests", "running", "tokens")

    def __init__(self) -> None:
        self.running = 0
        self.requests = Window(MINUTE_S)
        self.tokens = Window(MINUTE_S)
        self.day_tokens = Window(DAY_S)


@dataclass(frozen=True)
class Standing:
    """Where an organisation stands now."""

    running: int
    requests: int
    tokens: int
    day_tokens: int
    requests_clear_s: float
    """Until the last minute's requests count no longer, if no more are made."""


class Gate:
    """One call that was let in."""

    __slots__ = ("_at", "_meters", "_open", "_taken")

    def __init__(self, meters: _Meters, taken: Sequence[tuple[Window, int]], at: float) -> None:
        self._meters = meters
        self._taken = taken
        self._at = at
        self._open = True

    def leave(self) -> None:
        if self._open:
            self._open = False
            self._meters.running -= 1

    def lower(self, tokens: int) -> None:
        """The answer was cut by so many tokens: they are not taken."""
        for window, _ in self._taken:
            if window is not self._meters.requests:
                window.give_back(tokens, self._at)

    def undo(self) -> None:
        if self._open:
            self.leave()
            for window, amount in self._taken:
                window.give_back(amount, self._at)


class Limits:
    """The meters of all organisations of this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._meters: dict[int, _Meters] = {}

    def enter(self, organisation_id: int, tier: Tier, tokens: int, who: str) -> Gate:
        """Let a call of so many tokens in. Raises LimitReached in the hosted API's words; `who` is whom
        they name."""
        now = self._clock()
        meters = self._meters.get(organisation_id)
        if meters is None:
            meters = self._meters[organisation_id] = _Meters()
        if tier.concurrency and meters.running >= tier.concurrency:
            text = f"request reached organization max concurrency: {tier.concurrency}"
            raise _reached(who, text, BUSY_RETRY_S)
        taken: list[tuple[Window, int]] = []
        for name, limit, window, amount in (
            ("RPM", tier.rpm, meters.requests, 1),
            ("TPM", tier.tpm, meters.tokens, tokens),
            ("TPD", tier.tpd, meters.day_tokens, tokens),
        ):
            if limit:
                if window.first_leaves <= now:
                    window.expire(now)
                if window.total + amount > limit:
                    raise _beyond(name, limit, window, amount, who, now)
                taken.append((window, amount))
        for window, amount in taken:
            window.take(amount, now)
        meters.running += 1
        return Gate(meters, taken, now)

    def standing(self, organisation_id: int) -> Standing:
        meters = self._meters.get(organisation_id) or _Meters()
        now = self._clock()
        for window in (meters.requests, meters.tokens, meters.day_tokens):
            window.expire(now)
        return Standing(
            meters.running,
            meters.requests.total,
            meters.tokens.total,
            meters.day_tokens.total,
            meters.requests.clear(now),
        )

    def requests(self, organisation_id: int) -> tuple[int, float]:
        """Of the last minute, and the seconds until they count no longer if no more are made."""
        meters = self._meters.get(organisation_id)
        if meters is None:
            return 0, 0.0
        now = self._clock()
        requests = meters.requests
        if requests.first_leaves <= now:
            requests.expire(now)
        return requests.total, requests.clear(now)

    @property
    def running(self) -> int:
        """Calls under way, of all organisations."""
        return sum(meters.running for meters in self._meters.values())


def _beyond(name: str, limit: int, window: Window, amount: int, who: str, now: float) -> LimitReached:
    """Why so much more does not fit into that window."""
    if name == "RPM":
        text = f"request reached organization max RPM: {limit}"
    else:
        text = f"request reached organization {name} rate limit, current:{window.total}, limit:{limit}"
    if amount > limit:
        return LimitReached(
            f"Your account {who} {text}: this call alone asks for {amount} tokens",
            mend="lower max_tokens or shorten the conversation",
        )
    return _reached(who, text, window.wait(window.total + amount - limit, now))


def _reached(who: str, text: str, wait: float) -> LimitReached:
    seconds = max(1, -int(-wait // 1))
    return LimitReached(
        f"Your account {who} {text}, please try again after {seconds} seconds",
        passing=True,
        retry_after_s=wait,
    )
