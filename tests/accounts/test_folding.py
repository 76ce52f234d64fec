"""Closed months become sums, in bounded steps, and after every step the books agree."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from perilune.accounts import audit, folding
from perilune.accounts.accounts import Accounts
from perilune.accounts.folding import first_kept_ms, month_of
from perilune.accounts.prices import Buckets
from perilune.accounts.request_ids import new_request_id
from perilune.accounts.usage import calls_csv, totals, totals_csv, usd
from perilune.chat.messages import Usage
from perilune.errors import InputError
from perilune.settings import Settings


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def on(self, day: str) -> None:
        self.now = datetime.fromisoformat(f"{day}T12:00:00+00:00").timestamp()

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()
DAYS = ("2026-01-31", "2026-02-01", "2026-02-27", "2026-03-31", "2026-04-01")


@pytest.fixture
async def accounts(tmp_path: Path) -> Iterator[Accounts]:  # type: ignore[misc]
    """Three calls on each day, two keys, prepaid."""
    settings = Settings.load(tmp_path, {"prepaid": True, "ledger_months": 1}, {})
    CLOCK.on(DAYS[0])
    with Accounts.open(tmp_path, settings, CLOCK) as accounts:
        accounts.wallets.enter(1, "deposit", 10**9, "r", actor="test")
        accounts.wallets.enter(1, "voucher", 30_000, "v", actor="test")
        other = accounts.authenticate(accounts.create_key("other"), "chat")
        for day in DAYS:
            CLOCK.on(day)
            for number in range(3):
                reservation = await accounts.reserve(
                    other if number == 2 else accounts.local_principal(),
                    request_id=new_request_id(),
                    model=f"m{number % 2}",
                    price="kimi-k2.6",
                    prompt_bound=100,
                    max_tokens=10,
                )
                usage = Usage(prompt_tokens=10 + number, cached_tokens=3, completion_tokens=5)
                await accounts.settle(reservation, usage, reasoning=2)
        yield accounts


def test_first_kept() -> None:
    def kept(day: str, months: int) -> str:
        at = datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp()
        return datetime.fromtimestamp(first_kept_ms(at, months) / 1000, UTC).isoformat()

    assert kept("2026-04-01", 1) == "2026-03-01T00:00:00+00:00"
    assert kept("2026-01-15", 13) == "2024-12-01T00:00:00+00:00"
    assert month_of(first_kept_ms(datetime(2026, 4, 9, tzinfo=UTC).timestamp(), 1)) == "2026-03"


@pytest.mark.parametrize("step", [1, 2, 4, 1000])
async def test_sums_replace_rows_and_nothing_else_changes(accounts: Accounts, step: int) -> None:
    before = [totals(accounts.store, by) for by in (("month", "key", "model", "price"), ("project",))]
    wallet = accounts.organisations.state(1)
    cut = first_kept_ms(CLOCK.now, 1)
    steps = 0
    while done := await folding.fold_step(accounts.store, cut, step):
        assert done <= step
        assert accounts.verify() == ()
        steps += 1
    assert steps >= 9 / step
    assert len(accounts.usage_rows()) == 6  # March is the closed month that is kept, April is not closed
    assert [totals(accounts.store, by) for by in (("month", "key", "model", "price"), ("project",))] == before
    assert accounts.organisations.state(1) == wallet
    assert accounts.store.read("SELECT COUNT(*) FROM carried")[0][0] == 6  # 2 months x (2 + 1) kinds


async def test_open_rows_are_never_folded(accounts: Accounts) -> None:
    await accounts.reserve(
        accounts.local_principal(), request_id="open", model="m", price="free", prompt_bound=1, max_tokens=1
    )
    CLOCK.on("2028-01-01")
    assert accounts.fold(actor="me") == 15
    (line, *_) = audit.lines(accounts.store)
    assert (line.actor, line.act, line.detail["calls"]) == ("me", "ledger.fold", 15)
    assert [row.outcome for row in accounts.usage_rows()] == ["open"]
    assert accounts.verify() == ()
    assert accounts.fold() == 0
    assert audit.lines(accounts.store)[0] == line  # what does nothing is no act


async def test_usage_by_axis_and_period(accounts: Accounts) -> None:
    by_month = {one.group: one for one in totals(accounts.store, ("month",))}
    assert {group: one.calls for group, one in by_month.items()} == {
        ("2026-01",): 3,
        ("2026-02",): 6,
        ("2026-03",): 3,
        ("2026-04",): 3,
    }
    one = by_month["2026-01",]
    assert (one.buckets, one.reasoning) == (Buckets(7 + 8 + 9, 9, 15), 6)
    assert one.charge == 24 * 950 + 9 * 160 + 15 * 4000
    days = totals(accounts.store, ("day", "model"), date(2026, 2, 1), date(2026, 3, 31))
    assert [(one.group, one.calls) for one in days] == [
        (("2026-02-01", "m0"), 2),
        (("2026-02-01", "m1"), 1),
        (("2026-02-27", "m0"), 2),
        (("2026-02-27", "m1"), 1),
    ]
    assert [one.calls for one in totals(accounts.store, (), date(2026, 4, 1))] == [3]
    with pytest.raises(InputError, match="cannot group by 'colour'"):
        totals(accounts.store, ("colour",))


async def test_folded_months_count_from_their_first_day(accounts: Accounts) -> None:
    accounts.fold()

    def calls(since: date | None, until: date | None) -> int:
        return sum(one.calls for one in totals(accounts.store, (), since, until))

    assert calls(date(2026, 2, 1), date(2026, 3, 1)) == 6
    assert calls(date(2026, 2, 2), date(2026, 3, 1)) == 0
    assert calls(date(2026, 1, 1), date(2026, 2, 1)) == 3
    assert calls(None, date(2026, 2, 2)) == 9
    assert [one.group for one in totals(accounts.store, ("day",))][:2] == [("2026-01-01",), ("2026-02-01",)]


async def test_csv(accounts: Accounts) -> None:
    found = totals(accounts.store, ("month", "model"), date(2026, 4, 1))
    header, *lines = totals_csv(found, ("month", "model")).splitlines()
    assert header == (
        "month,model,calls,estimated,uncached,cached,output,reasoning,charge_nano_usd,charge_usd"
    )
    assert lines[0] == f"2026-04,m0,2,0,16,6,10,4,{found[0].charge},{usd(found[0].charge)}"
    rows = accounts.usage_rows(limit=2)
    text = calls_csv(rows).splitlines()
    assert len(text) == 3 and text[1].startswith(
        f"{rows[0].request_id},{rows[0].model},kimi-k2.6@2026-04-20,finished,False,"
    )


def test_exact_dollars_and_no_formulas() -> None:
    assert [usd(nano) for nano in (0, 1, 1_629_000, 12_000_000_000, -5)] == [
        "0.000000000",
        "0.000000001",
        "0.001629000",
        "12.000000000",
        "-0.000000005",
    ]
    from perilune.accounts.usage import Total

    for formula in ("=1+1", "-1+1"):
        line = totals_csv([Total((formula,), *[0] * 7)], ("model",)).splitlines()[1]
        assert line.startswith(f"'{formula},0")
