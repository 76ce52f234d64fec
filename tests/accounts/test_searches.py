"""Fees of web searches: set aside before the search, booked once, outside any model call, in the proof."""

import asyncio
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from perilune.accounts.accounts import Accounts
from perilune.accounts.folding import fold_all
from perilune.accounts.prices import SEARCH, Buckets, PriceBook, parse_prices
from perilune.accounts.usage import totals
from perilune.cli.main import main
from perilune.errors import ConfigError, InputError, InsufficientBalance, LimitReached
from perilune.settings import Settings

FEE = 5_000_000
"""0.005 USD."""


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    with Accounts.open(tmp_path, Settings(home=tmp_path)) as accounts:
        yield accounts


@pytest.fixture
def paying(tmp_path: Path) -> Iterator[Accounts]:
    settings = Settings(home=tmp_path, prepaid=True, activation_usd=0)
    with Accounts.open(tmp_path, settings) as accounts:
        yield accounts


async def search(accounts: Accounts, search_id: str, *, found: bool = True) -> int:
    reservation = await accounts.reserve_search(accounts.local_principal(), request_id=search_id)
    return (await accounts.settle_search(reservation, found=found)).nano_usd


async def test_a_search_is_charged_once(accounts: Accounts) -> None:
    principal = accounts.local_principal()
    reservation = await accounts.reserve_search(principal, request_id="s1")
    assert (reservation.amount, accounts.verify()) == (FEE, ())
    first = await accounts.settle_search(reservation, found=True)
    again = await accounts.settle_search(reservation, found=True)
    assert first == again and first.nano_usd == FEE and first.price_version == "web_search@2026-01-01"
    assert accounts.counters.calls == {("web_search@2026-01-01", "finished"): 1}
    assert accounts.counters.nano_usd == {"web_search@2026-01-01": FEE}
    with pytest.raises(InputError, match="used before"):
        await accounts.reserve_search(principal, request_id="s1")
    (row,) = accounts.usage_rows()
    assert (row.model, row.outcome, row.charge, row.uncached) == ("$web_search", "finished", FEE, 0)
    (total,) = totals(accounts.store, ("model",))
    assert (total.group, total.calls, total.charge) == (("$web_search",), 1, FEE)
    assert accounts.verify() == ()


async def test_a_search_that_failed_or_never_was_costs_nothing(accounts: Accounts) -> None:
    assert await search(accounts, "s1", found=False) == 0
    assert [row.outcome for row in accounts.usage_rows()] == ["failed"]
    reservation = await accounts.reserve_search(accounts.local_principal(), request_id="s2")
    await accounts.release_search(reservation)
    assert [row.request_id for row in accounts.usage_rows()] == ["s1"]
    await accounts.release_search(reservation)  # nothing is left to take back
    assert await search(accounts, "s3") == FEE
    settled = await accounts.reserve_search(accounts.local_principal(), request_id="s4")
    await accounts.settle_search(settled, found=True)
    await accounts.release_search(settled)
    assert accounts.ledger.row("s4") is not None and accounts.verify() == ()


async def test_budgets_and_balance_hold_searches(paying: Accounts) -> None:
    with pytest.raises(InsufficientBalance, match="exceeded your current token quota"):
        await search(paying, "s1")
    paying.wallets.enter(1, "voucher", FEE // 2, "gift", actor="test")
    paying.wallets.enter(1, "deposit", FEE, "paid", actor="test")
    assert await search(paying, "s2") == FEE
    with pytest.raises(InsufficientBalance):
        await search(paying, "s3")
    (fee,) = paying.wallets.fees(1)
    assert (fee.search_id, fee.charge, fee.voucher, fee.cash) == ("s2", FEE, -FEE // 2, -FEE // 2)
    paying.wallets.enter(1, "deposit", 10 * FEE, "more", actor="test")
    paying.set_key_budget(paying.local_principal().key_id, FEE + 1)
    with pytest.raises(LimitReached, match="budget"):
        await search(paying, "s4")
    assert paying.verify() == ()
    assert paying.counters.refusals["exceeded_current_quota_error"] == 2


async def test_searches_at_the_same_time_never_overdraw(paying: Accounts) -> None:
    paying.wallets.enter(1, "deposit", 3 * FEE + 1, "paid", actor="test")
    done = await asyncio.gather(*(search(paying, f"s{n}") for n in range(10)), return_exceptions=True)
    assert [one for one in done if not isinstance(one, InsufficientBalance)] == [FEE] * 3
    assert paying.organisations.state(1).available == 1 and paying.verify() == ()


async def test_a_crash_during_a_search_costs_nothing(tmp_path: Path) -> None:
    with Accounts.open(tmp_path, Settings(home=tmp_path)) as accounts:
        await accounts.reserve_search(accounts.local_principal(), request_id="s1")
    with Accounts.open(tmp_path, Settings(home=tmp_path)) as accounts:
        assert [(row.outcome, row.charge) for row in accounts.usage_rows()] == [("orphaned", 0)]
        assert accounts.verify() == ()


async def test_verify_finds_a_fee_that_was_changed(tmp_path: Path, accounts: Accounts) -> None:
    await search(accounts, "s1")
    accounts.store.write_now(lambda db: db.execute("UPDATE request SET charge = charge - 1"))
    assert any(
        "request s1 is charged 4999999, what it used costs 5000000" in said for said in accounts.verify()
    )
    accounts.store.write_now(lambda db: db.execute("UPDATE request SET charge = charge + 1, searches = 0"))
    assert any("what it used costs 0" in said for said in accounts.verify())


async def test_folded_searches_stay_in_the_proof(accounts: Accounts) -> None:
    for number in range(3):
        await search(accounts, f"s{number}", found=number != 1)
    assert fold_all(accounts.store, 1 << 60) == 3
    assert accounts.store.read("SELECT calls, searches, charge FROM carried") == [(3, 2, 2 * FEE)]
    assert accounts.verify() == ()
    accounts.store.write_now(lambda db: db.execute("UPDATE carried SET searches = 3"))
    assert accounts.verify() != ()


def test_prices_of_searches(tmp_path: Path) -> None:
    book = PriceBook.load(Settings(home=tmp_path))
    assert book.price(SEARCH).charge(Buckets(searches=2)) == 2 * FEE
    own = tmp_path / "book.toml"
    own.write_text('[[price]]\nid = "m"\nfrom = 2026-01-01\ninput = 1\ncached_input = 1\noutput = 1\n')
    assert PriceBook.load(Settings(home=tmp_path, price_book=str(own))).price(SEARCH).search == FEE
    own.write_text(
        '[[price]]\nid = "web_search"\nfrom = 2026-01-01\nsearch = 0.005\n'
        '[[price]]\nid = "web_search"\nfrom = 2026-07-01\nsearch = 0.004\n'
    )
    book = PriceBook.load(Settings(home=tmp_path, price_book=str(own)))
    assert book.price(SEARCH, date(2026, 6, 30)).search == FEE
    assert book.price(SEARCH, date(2026, 7, 1)).search == 4_000_000


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('id = "web_search"\nfrom = 2026-01-01\ninput = 1', "expected exactly from, id, search"),
        ('id = "web_search"\nfrom = 2026-01-01\nsearch = -1', "search must be zero or more"),
        ('id = "m"\nfrom = 2026-01-01\nsearch = 1', "expected exactly cached_input"),
    ],
)
def test_wrong_prices_of_searches(entry: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_prices(f"[[price]]\n{entry}\n", "book.toml")


async def test_the_command_line_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Accounts.open(tmp_path, Settings(home=tmp_path)) as accounts:
        await search(accounts, "01SEARCH")
    home = ["--home", str(tmp_path)]
    assert main(["account", "entries", *home]) == 0
    shown = capsys.readouterr().out.splitlines()[-1].split()
    assert shown == ["01SEARCH", "2", "0.005", "0.00", "0.00", "web_search@2026-01-01"]
    assert main(["usage", "--by", "model,price", "--json", *home]) == 0
    (total,) = json.loads(capsys.readouterr().out)
    assert (total["model"], total["price"], total["charge"]) == ("$web_search", "web_search@2026-01-01", FEE)
    assert main(["ledger", "verify", *home]) == 0
    assert "1 calls" in capsys.readouterr().out
