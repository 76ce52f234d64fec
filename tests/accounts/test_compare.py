"""The comparison of prices: the published table, to the tenth of a cent."""

from __future__ import annotations

from pathlib import Path

import pytest

from perilune.accounts.compare import compare, other_prices, table, usd3
from perilune.accounts.prices import Buckets, PriceBook
from perilune.errors import ConfigError
from perilune.settings import Settings


def test_the_published_table(tmp_path: Path) -> None:
    """50,000 tokens in and 5,000 out: input and output, in USD."""
    k26 = PriceBook.load(Settings(home=tmp_path)).price("kimi-k2.6")
    fresh = {line.price: line for line in compare(Buckets(50_000, 0, 5000), [k26, *other_prices()])}
    cells = {price: (usd3(line.uncached), usd3(line.output)) for price, line in fresh.items()}
    assert cells == {
        "gpt-5.4": ("0.125", "0.075"),
        "claude-opus-4.6": ("0.375", "0.375"),
        "kimi-k2.6": ("0.048", "0.020"),
    }
    (cached,) = compare(Buckets(0, 50_000, 5000), [k26])
    assert (usd3(cached.cached), usd3(cached.output)) == ("0.008", "0.020")


def test_as_a_table(tmp_path: Path) -> None:
    k26 = PriceBook.load(Settings(home=tmp_path)).price("kimi-k2.6")
    lines = table(compare(Buckets(50_000, 0, 5000), [*other_prices(), k26])).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["kimi-k2.6", "0.048", "0.000", "0.020", "0.068", "1.0"],
        ["gpt-5.4", "0.125", "0.000", "0.075", "0.200", "3.0"],
        ["claude-opus-4.6", "0.375", "0.000", "0.375", "0.750", "11.1"],
    ]


def test_a_book_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "book.toml"
    path.write_text('[[price]]\nid = "x"\nfrom = 2026-01-01\ninput = 1\ncached_input = 1\noutput = 1\n')
    assert [price.id for price in other_prices(path)] == ["x"]
    with pytest.raises(ConfigError, match="book: cannot read"):
        other_prices(tmp_path / "none")
