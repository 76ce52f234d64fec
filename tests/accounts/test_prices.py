"""Prices: exact integer arithmetic over disjoint buckets, versions by date, clear refusals."""

from datetime import date
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.accounts.prices import Buckets, Price, PriceBook, parse_prices, upper_bound
from perilune.chat.messages import Usage
from perilune.errors import ConfigError
from perilune.settings import Settings

counts = st.integers(0, 10**9)
rates = st.integers(0, 10**12)
prices = st.builds(Price, st.just("p"), st.just(date(2026, 1, 1)), rates, rates, rates)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt, output = draw(counts), draw(counts)
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=draw(st.integers(0, prompt)),
        completion_tokens=output,
        reasoning_tokens=draw(st.integers(0, output)),
    )


@pytest.fixture
def book(tmp_path: Path) -> PriceBook:
    return PriceBook.load(Settings(home=tmp_path))


def test_the_bundled_prices(book: PriceBook) -> None:
    usage = Usage(prompt_tokens=1200, cached_tokens=900, completion_tokens=300, reasoning_tokens=200)
    assert book.charge("kimi-k2.6", usage) == 300 * 950 + 900 * 160 + 300 * 4000 == 1_629_000
    assert book.charge("kimi-k2.5", usage) == 300 * 600 + 900 * 100 + 300 * 3000
    assert book.charge("free", usage) == 0
    assert book.price("kimi-k2.6", date(2026, 11, 24)).version == "kimi-k2.6@2026-04-20"


@given(prices, usages())
def test_a_charge_is_the_exact_sum_of_its_buckets_rounded_up(price: Price, usage: Usage) -> None:
    exact = Fraction(
        (usage.prompt_tokens - usage.cached_tokens) * price.input
        + usage.cached_tokens * price.cached_input
        + usage.completion_tokens * price.output,
        1_000_000,
    )
    charge = price.charge(Buckets.of(usage))
    assert 0 <= charge - exact < 1


@given(st.integers(-5, 50), st.integers(-5, 50), st.integers(-5, 50))
def test_buckets_are_disjoint_even_of_nonsense(prompt: int, cached: int, output: int) -> None:
    usage = Usage(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=output)
    buckets = Buckets.of(usage)
    assert min(buckets.uncached, buckets.cached, buckets.output) >= 0
    assert buckets.uncached + buckets.cached == max(prompt, 0)
    if 0 <= cached <= prompt:
        assert buckets.cached == cached


@given(prices, usages(), counts, counts)
def test_no_call_within_its_bounds_costs_more_than_the_upper_bound(
    price: Price, usage: Usage, more_prompt: int, more_output: int
) -> None:
    bound = upper_bound(price, usage.prompt_tokens + more_prompt, usage.completion_tokens + more_output)
    assert price.charge(Buckets.of(usage)) <= bound


def entry(since: str, rate: str) -> str:
    return f'[[price]]\nid = "m"\nfrom = {since}\ninput = {rate}\ncached_input = 0\noutput = 1\n'


def test_each_day_has_its_version() -> None:
    text = entry("2026-03-01", "2.5") + entry("2026-01-01", "1")
    book = PriceBook(parse_prices(text, "x"))
    days = {"2025-12-31": 1, "2026-01-01": 1, "2026-02-28": 1, "2026-03-01": 2.5, "2027-01-01": 2.5}
    for day, rate in days.items():
        assert book.price("m", date.fromisoformat(day)).input == rate * 10**9


def test_decimals_are_exact() -> None:
    (price,) = parse_prices(entry("2026-01-01", "0.000000001"), "x")
    assert price.input == 1
    assert price.charge(Buckets(uncached=1)) == 1  # a fraction rounds up
    assert price.charge(Buckets(uncached=1_000_000)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[price", "not valid TOML"),
        ("", "expected \\[\\[price\\]\\] entries"),
        ("x = 1\n" + entry("2026-01-01", "1"), "nothing else"),
        (entry("2026-01-01", "-1"), "price 1: input must be zero or more"),
        (entry("2026-01-01", "nan"), "price 1: input must be zero or more"),
        (entry("2026-01-01", '"1"'), "price 1: input must be a number"),
        (entry("2026-01-01", "0.0000000001"), "more than nine decimals"),
        (entry('"2026-01-01"', "1"), "from must be a date"),
        (entry("2026-01-01", "1") + "cached = 1\n", "expected exactly"),
        (entry("2026-01-01", "1") * 2, "m@2026-01-01 occurs twice"),
    ],
)
def test_a_wrong_book_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        PriceBook.load(Settings(home=tmp_path, price_book=str(path)))


def test_an_unknown_price_and_a_missing_book(tmp_path: Path, book: PriceBook) -> None:
    with pytest.raises(ConfigError, match=r"no price 'gpt'.*free, kimi-k2.5, kimi-k2.6"):
        book.price("gpt")
    with pytest.raises(ConfigError, match="cannot read"):
        PriceBook.load(Settings(home=tmp_path, price_book=str(tmp_path / "none.toml")))
