"""Rate tiers: the presets are the reference's tables, and a file of one's own is read strictly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perilune.accounts.prices import parse_prices
from perilune.accounts.tiers import Tier, TierBook, parse_tiers
from perilune.errors import ConfigError
from perilune.settings import Settings

USD = 1_000_000_000
ENTRY = '[[tier]]\nname = "a"\nconcurrency = 1\nrpm = 2\ntpm = 3\ntpd = 4\n'


def book(home: Path, **values: object) -> TierBook:
    return TierBook.load(Settings.load(home, values, {}))


def test_a_new_home_is_generous(tmp_path: Path) -> None:
    tier = book(tmp_path).tier(Settings(home=tmp_path).tier)
    assert tier == Tier("self-hosted", concurrency=1000)


def test_the_ladder_is_climbed_by_deposits(tmp_path: Path) -> None:
    tiers = book(tmp_path)
    limits = [
        (tier.concurrency, tier.rpm, tier.tpm, tier.tpd)
        for usd in (0, 1, 10, 20, 100, 1000, 3000, 10**6)
        for tier in [tiers.tier("kimi", usd * USD)]
    ]
    assert limits == [
        (1, 3, 500_000, 1_500_000),
        (1, 3, 500_000, 1_500_000),
        (50, 200, 2_000_000, 0),
        (100, 500, 3_000_000, 0),
        (200, 5000, 3_000_000, 0),
        (400, 5000, 4_000_000, 0),
        (1000, 10_000, 5_000_000, 0),
        (1000, 10_000, 5_000_000, 0),
    ]
    assert tiers.tier("kimi", 10 * USD - 1).name == "kimi-0"
    assert tiers.tier("kimi-late", 3000 * USD).rpm == 300
    assert tiers.tier("kimi-5", 0).name == "kimi-5"


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "tiers.toml"
    path.write_text(ENTRY)
    assert book(tmp_path, tier="a", tier_book=str(path)).tier("a") == Tier("a", 1, 2, 3, 4)
    with pytest.raises(ConfigError, match=r"tier: no rate tier 'self-hosted'.*there are a"):
        book(tmp_path, tier_book=str(path))
    with pytest.raises(ConfigError, match=r"tier_book: cannot read .*: No such file.*docs/accounts\.md"):
        book(tmp_path, tier_book=str(tmp_path / "none"))


def test_the_books_of_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "accounts.md").read_text(encoding="utf-8")
    tiers, prices = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert parse_tiers(tiers, "docs") == (Tier("small", 4, 60, 200_000, 0),)
    assert [price.version for price in parse_prices(prices, "docs")] == ["my-kimi@2026-11-01"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[tier]", "not valid TOML"),
        ("", "expected .*tier"),
        ("x = 1\n" + ENTRY, "expected .*tier"),
        (ENTRY + "burst = 1\n", "tier 1: expected"),
        (ENTRY.replace("rpm = 2\n", ""), "tier 1: expected"),
        (ENTRY.replace("rpm = 2", "rpm = -2"), "rpm must be a whole number"),
        (ENTRY.replace("rpm = 2", "rpm = true"), "rpm must be a whole number"),
        (ENTRY.replace('"a"', '""'), "name must be text"),
        (ENTRY + ENTRY, "a occurs twice"),
        (ENTRY + 'ladder = "a"\n', "a is a tier and a ladder"),
    ],
)
def test_a_bad_file_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TierBook(parse_tiers(text, "mine.toml"))
