"""What was settled and refused since the process began, for /metrics. The ledger is the truth."""

from __future__ import annotations

from collections import Counter

from perilune.accounts.rows import Charge


class Counters:
    """Labels are few: price versions, outcomes and error codes, never keys or model names of clients."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        """(price version, outcome) -> settled calls."""
        self.tokens: Counter[tuple[str, str]] = Counter()
        """(price version, `uncached`, `cached` or `output`) -> tokens."""
        self.nano_usd: Counter[str] = Counter()
        """Price version -> charged."""
        self.refusals: Counter[str] = Counter()
        """Error code -> calls that limits, budgets or balance refused."""

    def settled(self, charge: Charge) -> None:
        version, tokens, buckets = charge.price_version, self.tokens, charge.buckets
        self.calls[version, charge.outcome] += 1
        tokens[version, "uncached"] += buckets.uncached
        tokens[version, "cached"] += buckets.cached
        tokens[version, "output"] += buckets.output
        self.nano_usd[version] += charge.nano_usd

    def refused(self, code: str) -> None:
        self.refusals[code] += 1
