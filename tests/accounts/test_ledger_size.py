"""What the books weigh: a row is small, and what calls leave behind goes again with their month."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from perilune.accounts.accounts import Accounts
from perilune.accounts.request_ids import new_request_id
from perilune.chat.messages import Usage
from perilune.settings import Settings

MOST_BYTES = 250
"""Of one call in HOME/accounts.db, its share of the indexes included."""
CALLS = 1500
YEAR_S = 366 * 86_400.0


class Clock:
    now = datetime(2026, 1, 15, tzinfo=UTC).timestamp()

    def __call__(self) -> float:
        return self.now


def opened(home: Path, clock: Clock) -> Accounts:
    settings = Settings(home=home, prepaid=True, ledger_months=1)
    accounts = Accounts.open(home, settings, clock)
    accounts.wallets.enter(1, "deposit", 10**15, f"r{clock.now}", actor="test")
    return accounts


async def use(accounts: Accounts, clock: Clock, calls: int) -> None:
    """Calls as large as they come, a second apart."""
    who = accounts.local_principal()
    for _ in range(calls):
        clock.now += 1
        reservation = await accounts.reserve(
            who,
            request_id=new_request_id(),
            model="moonshotai/Kimi-K2.6",
            price="kimi-k2.6",
            prompt_bound=250_000,
            max_tokens=8_000,
        )
        usage = Usage(prompt_tokens=240_000, cached_tokens=200_000, completion_tokens=7_900)
        await accounts.settle(reservation, usage, reasoning=7_000)


def bytes_of(accounts: Accounts) -> int:
    """What is in use; pages that are free again are used before the file grows."""
    pages, free, size = (
        accounts.store.read(f"PRAGMA {name}")[0][0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def rows_of(accounts: Accounts) -> dict[str, int]:
    tables = accounts.store.read("SELECT name FROM sqlite_master WHERE type = 'table'")
    counts = {name: accounts.store.read(f"SELECT COUNT(*) FROM {name}")[0][0] for (name,) in tables}
    return {name: count for name, count in counts.items() if not name.startswith("sqlite")}


async def test_a_row_has_at_most_250_bytes(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock) as accounts:
        await use(accounts, clock, 100)
        before = bytes_of(accounts)
        await use(accounts, clock, CALLS)
        each = (bytes_of(accounts) - before) / CALLS
        assert 100 < each <= MOST_BYTES, each


async def test_calls_grow_no_other_table_and_leave_with_their_month(tmp_path: Path) -> None:
    """No side table is left that nobody prunes."""
    clock = Clock()
    with opened(tmp_path, clock) as accounts:
        await use(accounts, clock, 3)  # the price and the like are written once
        before = rows_of(accounts)
        await use(accounts, clock, 40)
        assert rows_of(accounts) == before | {"request": before["request"] + 40}
        clock.now += YEAR_S
        while await accounts.fold_step():
            continue
        assert rows_of(accounts) == before | {"request": 0, "carried": 1}
        assert accounts.verify() == ()


async def test_the_file_does_not_grow_with_the_years(tmp_path: Path) -> None:
    clock, sizes = Clock(), []
    for _ in range(3):
        with opened(tmp_path, clock) as accounts:
            while await accounts.fold_step():
                continue
            await use(accounts, clock, 400)
        sizes.append(os.path.getsize(tmp_path / "accounts.db"))  # closed, so whole
        clock.now += YEAR_S
    assert sizes[2] <= sizes[1] <= sizes[0] * 1.1
