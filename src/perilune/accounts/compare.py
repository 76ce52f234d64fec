"""The same traffic under other prices: what it came to here, and what it would have come to elsewhere.

Tokens are taken as they were counted here. Other models' tokenizers count the same text a little differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from perilune.accounts.prices import TOKENS_PER_RATE, Buckets, Price, parse_prices
from perilune.accounts.toml_books import read_book
from perilune.accounts.usage import Total


@dataclass(frozen=True)
class Line:
    """One price's bill for the traffic, in nano-USD."""

    price: str
    uncached: int
    cached: int
    output: int

    @property
    def total(self) -> int:
        return self.uncached + self.cached + self.output


def traffic_of(totals: Iterable[Total]) -> Buckets:
    """All tokens of these sums."""
    found = list(totals)
    return Buckets(
        sum(one.uncached for one in found), sum(one.cached for one in found), sum(one.output for one in found)
    )


def compare(traffic: Buckets, prices: Iterable[Price]) -> list[Line]:
    """Cheapest first."""
    return sorted((_line(price, traffic) for price in prices), key=lambda line: (line.total, line.price))


def other_prices(book: Path | None = None) -> tuple[Price, ...]:
    """The prices of that book, else those that come with Perilune. Raises ConfigError."""
    return parse_prices(*read_book(book, "compare.toml", "book"))


def table(lines: Sequence[Line]) -> str:
    """For people: USD with three decimals, and how many times the cheapest each is."""
    rows: list[tuple[str, ...]] = [("price", "input", "cached", "output", "total USD", "times")]
    least = min((line.total for line in lines), default=0)
    for line in lines:
        times = f"{line.total / least:.1f}" if least else "-"
        parts = (line.uncached, line.cached, line.output, line.total)
        rows.append((line.price, *(usd3(part) for part in parts), times))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(_aligned(row, widths) for row in rows)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    numbers = zip(row[1:], widths[1:], strict=True)
    return "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in numbers)])


def usd3(nano: int) -> str:
    """Rounded to a tenth of a cent, half up: `0.048`."""
    return str((Decimal(nano) / 1_000_000_000).quantize(Decimal("0.001"), ROUND_HALF_UP))


def _line(price: Price, traffic: Buckets) -> Line:
    parts = (
        traffic.uncached * price.input,
        traffic.cached * price.cached_input,
        traffic.output * price.output,
    )
    return Line(price.id, *(-(-part // TOKENS_PER_RATE) for part in parts))
