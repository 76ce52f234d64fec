"""The price book: what tokens and web searches cost, in integer nano-USD, by version.

A price has an id, such as `kimi-k2.6`, and versions, each with the date from which it holds. Usage is
split into disjoint buckets before it is multiplied, so no token is billed twice. No float is involved:
TOML numbers are read as decimals.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Protocol, Self

import msgspec

from perilune.accounts.toml_books import entries_of, read_book
from perilune.errors import ConfigError
from perilune.settings import Settings

NANO_PER_USD = 1_000_000_000
DAY_S = 86_400
TOKENS_PER_RATE = 1_000_000
"""Rates are nano-USD per so many tokens."""
FIELDS = ("input", "cached_input", "output")
SEARCH = "web_search"
"""Id of the price of a web search. A book without one has the bundled book's."""


class TokenCounts(Protocol):
    """The usage of one call; `cached_tokens` is part of `prompt_tokens`, `reasoning_tokens` of
    `completion_tokens`. `chat.messages.Usage` is one."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...


class Buckets(msgspec.Struct, frozen=True):
    """Disjoint token counts: each token of a call is in exactly one. A search has none."""

    uncached: int = 0
    cached: int = 0
    output: int = 0
    searches: int = 0

    @classmethod
    def of(cls, usage: TokenCounts) -> Self:
        """Counts that contradict themselves are clamped: never negative, never more cached than prompt."""
        prompt, cached, output = usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens
        if output < 0 or not 0 <= cached <= prompt:
            prompt, output = max(prompt, 0), max(output, 0)
            cached = min(max(cached, 0), prompt)
        return cls(prompt - cached, cached, output)


@dataclass(frozen=True)
class Price:
    """One version of one price. Rates in nano-USD per million tokens."""

    id: str
    since: date
    input: int
    cached_input: int
    output: int
    search: int = 0
    """Nano-USD for one."""

    @functools.cached_property
    def version(self) -> str:
        """The name by which ledger rows know it, such as `kimi-k2.6@2026-04-20`."""
        return f"{self.id}@{self.since.isoformat()}"

    def charge(self, buckets: Buckets) -> int:
        """Nano-USD, a fraction of one rounded up."""
        total = (
            buckets.uncached * self.input + buckets.cached * self.cached_input + buckets.output * self.output
        )
        return -(-total // TOKENS_PER_RATE) + buckets.searches * self.search


class PriceBook:
    """All prices, and which version of each holds on a day."""

    def __init__(self, prices: Iterable[Price]) -> None:
        """Raises ConfigError when a version occurs twice."""
        self._versions: dict[str, list[Price]] = {}
        self._day = 0
        """Since 1970."""
        self._today: dict[str, Price] = {}
        """Each call asks twice, so the day's answers are kept."""
        for price in sorted(prices, key=lambda one: one.since):
            versions = self._versions.setdefault(price.id, [])
            if versions and versions[-1].since == price.since:
                raise ConfigError(
                    f"{price.version} occurs twice", field="price_book", mend="give one another `from`"
                )
            versions.append(price)

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """The book that the setting `price_book` names, else the bundled one.

        Raises ConfigError naming the file and the entry."""
        prices = parse_prices(*read_book(settings.price_book, "prices.toml", "price_book"))
        if not any(price.id == SEARCH for price in prices):
            bundled = parse_prices(*read_book(None, "prices.toml", "price_book"))
            prices += tuple(price for price in bundled if price.id == SEARCH)
        return cls(prices)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(sorted(self._versions))

    def price(self, price_id: str, on: date | None = None) -> Price:
        """The version that holds on that day (today, in UTC). Days before the first version have the first.

        Raises ConfigError for an id that the book does not have."""
        if on is None:
            day = int(time.time() // DAY_S)
            if day != self._day:
                self._day, self._today = day, {}
            found = self._today.get(price_id)
            if found is None:
                found = self._today[price_id] = self.price(price_id, datetime.now(UTC).date())
            return found
        versions = self._versions.get(price_id)
        if versions is None:
            raise ConfigError(
                f"the price book has no price {price_id!r}",
                field="price",
                mend=f"it has {', '.join(self.ids)}; add it in the file that the setting price_book names",
            )
        for price in reversed(versions):
            if price.since <= on:
                return price
        return versions[0]

    def charge(self, price_id: str, usage: TokenCounts, on: date | None = None) -> int:
        """What this usage costs, in nano-USD."""
        return self.price(price_id, on).charge(Buckets.of(usage))

    def upper_bound(self, price_id: str, prompt_tokens: int, max_tokens: int, on: date | None = None) -> int:
        """The most that a call can cost, in nano-USD: nothing cached, all output used."""
        return upper_bound(self.price(price_id, on), prompt_tokens, max_tokens)


def upper_bound(price: Price, prompt_tokens: int, max_tokens: int) -> int:
    """A book may price cached input above fresh input, so the dearer of the two counts."""
    dearer = max(price.input, price.cached_input)
    return -(-(prompt_tokens * dearer + max_tokens * price.output) // TOKENS_PER_RATE)


def parse_prices(text: str, source: str) -> tuple[Price, ...]:
    """The entries of a price book. Raises ConfigError naming what is wrong where."""
    return tuple(_price(entry, where) for entry, where in entries_of(text, "price", source, _wrong))


def _price(entry: Mapping[str, Any], where: str) -> Price:
    is_search = isinstance(entry, dict) and entry.get("id") == SEARCH
    rated = ("search",) if is_search else FIELDS
    expected = {"id", "from", *rated}
    if not isinstance(entry, dict) or set(entry) != expected:
        raise _wrong(where, f"expected exactly {', '.join(sorted(expected))}")
    if not isinstance(entry["id"], str) or not entry["id"]:
        raise _wrong(where, "id must be text")
    if not isinstance(entry["from"], date) or isinstance(entry["from"], datetime):
        raise _wrong(where, "from must be a date")
    rates = dict.fromkeys(FIELDS, 0) | {field: _rate(entry[field], field, where) for field in rated}
    return Price(entry["id"], entry["from"], **rates)


def _rate(value: object, field: str, where: str) -> int:
    """USD as nano-USD, per million tokens or for one search."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise _wrong(where, f"{field} must be a number")
    if not Decimal(value).is_finite() or value < 0:
        raise _wrong(where, f"{field} must be zero or more")
    nano = Decimal(value) * NANO_PER_USD
    if nano != nano.to_integral_value():
        raise _wrong(where, f"{field} has more than nine decimals")
    return int(nano)


def _wrong(where: str, message: str) -> ConfigError:
    return ConfigError(f"{where}: {message}", field="price_book", mend="correct it there")
