"""The ledger: reserved before, settled once, never lost, never overdrawn, provably consistent."""

import asyncio
import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import perilune
from perilune.accounts.accounts import Accounts
from perilune.accounts.keys import Principal
from perilune.accounts.prices import PriceBook, parse_prices
from perilune.accounts.rows import Reservation
from perilune.accounts.tables import SCHEMA
from perilune.chat.messages import Usage
from perilune.errors import (
    ConfigError,
    InputError,
    InsufficientBalance,
    LimitReached,
    StorageFull,
    StoreError,
)
from perilune.settings import Settings
from perilune.store import Store

CALL_BOUND = 100 * 950 + 10 * 4000
"""Of 100 prompt and 10 output tokens."""


def opened(home: Path) -> Accounts:
    return Accounts.open(home, Settings(home=home))


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    with opened(tmp_path) as accounts:
        yield accounts


async def reserve(accounts: Accounts, principal: Principal, request_id: str) -> Reservation:
    return await accounts.reserve(
        principal,
        request_id=request_id,
        model="m",
        price="kimi-k2.6",
        prompt_bound=100,
        prompt_estimate=30,
        max_tokens=10,
    )


def balances(home: Path) -> list[tuple[int, int]]:
    with sqlite3.connect(home / "accounts.db") as connection:
        rows = connection.execute("SELECT spent, reserved FROM account ORDER BY id").fetchall()
    connection.close()
    return rows


async def test_open_then_settled(tmp_path: Path, accounts: Accounts) -> None:
    principal = accounts.local_principal()
    reservation = await reserve(accounts, principal, "r1")
    assert reservation.amount == CALL_BOUND
    row = accounts.usage_rows()[0]
    assert (row.outcome, row.reserved, row.charge, row.settled_ms) == ("open", CALL_BOUND, 0, None)
    assert sum(reserved for _, reserved in balances(tmp_path)) == 2 * CALL_BOUND  # key and project
    assert accounts.verify() == ()
    usage = Usage(prompt_tokens=90, cached_tokens=64, completion_tokens=8, reasoning_tokens=3)
    charge = await accounts.settle(reservation, usage, reasoning=3)
    assert charge.nano_usd == 26 * 950 + 64 * 160 + 8 * 4000
    row = accounts.usage_rows(principal.project_id)[0]
    assert (row.uncached, row.cached, row.output, row.reasoning) == (26, 64, 8, 3)
    assert (row.outcome, row.charge, row.price_version) == (
        "finished",
        charge.nano_usd,
        "kimi-k2.6@2026-04-20",
    )
    assert sum(spent for spent, _ in balances(tmp_path)) == 2 * charge.nano_usd
    assert all(reserved == 0 for _, reserved in balances(tmp_path))
    assert accounts.verify() == ()


async def test_the_first_settle_wins(tmp_path: Path, accounts: Accounts) -> None:
    reservation = await reserve(accounts, accounts.local_principal(), "r1")
    first = await accounts.settle(reservation, Usage(prompt_tokens=5))
    before = balances(tmp_path)
    again = await accounts.settle(reservation, Usage(prompt_tokens=999), outcome="failed", estimated=True)
    assert again == first
    assert balances(tmp_path) == before


async def test_a_request_id_is_used_once(tmp_path: Path, accounts: Accounts) -> None:
    await reserve(accounts, accounts.local_principal(), "r1")
    before = balances(tmp_path)
    with pytest.raises(InputError, match="used before"):
        await reserve(accounts, accounts.local_principal(), "r1")
    assert balances(tmp_path) == before


async def test_a_settle_without_a_row_is_an_error(accounts: Accounts) -> None:
    price = accounts.prices.price("kimi-k2.6")
    with pytest.raises(StoreError, match="never opened"):
        await accounts.settle(Reservation("none", accounts.local_principal(), price, 1, 1), Usage())


async def test_exactly_as_many_calls_as_the_budget_covers(tmp_path: Path, accounts: Accounts) -> None:
    secret = accounts.create_key("small", budget=10 * CALL_BOUND + CALL_BOUND // 2)
    principal = accounts.authenticate(secret, "chat")
    tries = [reserve(accounts, principal, f"r{number:03}") for number in range(200)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    admitted = [one for one in results if isinstance(one, Reservation)]
    assert len(admitted) == 10
    assert {type(one) for one in results} == {Reservation, LimitReached}
    assert all(one.passing for one in results if isinstance(one, LimitReached))
    # What is not used comes back.
    for reservation in admitted[:4]:
        await accounts.settle(reservation, Usage(), outcome="failed")
    results = await asyncio.gather(
        *(reserve(accounts, principal, f"s{number:03}") for number in range(20)), return_exceptions=True
    )
    assert sum(isinstance(one, Reservation) for one in results) == 4
    accounts.set_key_budget(principal.key_id, None)
    await reserve(accounts, principal, "t")
    assert accounts.verify() == ()


async def test_a_budget_can_be_used_to_its_last_nano(accounts: Accounts) -> None:
    principal = accounts.authenticate(accounts.create_key("exact", budget=CALL_BOUND), "chat")
    full = Usage(prompt_tokens=100, completion_tokens=10)
    await accounts.settle(await reserve(accounts, principal, "r1"), full)
    with pytest.raises(LimitReached, match="exact") as caught:
        await reserve(accounts, principal, "r2")
    assert not caught.value.passing
    accounts.set_key_budget(principal.key_id, 2 * CALL_BOUND)
    await reserve(accounts, principal, "r2")


async def test_the_projects_budget_holds_over_all_its_keys(tmp_path: Path, accounts: Accounts) -> None:
    with sqlite3.connect(tmp_path / "accounts.db") as connection:
        connection.execute(
            "UPDATE account SET budget = ? WHERE id = (SELECT account_id FROM project)", (CALL_BOUND,)
        )
    connection.close()
    other = accounts.authenticate(accounts.create_key("other"), "chat")
    await reserve(accounts, accounts.local_principal(), "r1")
    with pytest.raises(InsufficientBalance):
        await reserve(accounts, other, "r2")
    assert accounts.verify() == ()  # the refused key has nothing reserved


async def test_orphans_are_closed_at_the_next_start(tmp_path: Path) -> None:
    accounts = opened(tmp_path)
    await reserve(accounts, accounts.local_principal(), "r1")
    accounts.close()
    with opened(tmp_path) as accounts:
        row = accounts.usage_rows()[0]
        assert (row.outcome, row.estimated, row.uncached, row.output) == ("orphaned", True, 30, 0)
        assert row.charge == 30 * 950
        assert all(reserved == 0 for _, reserved in balances(tmp_path))
        assert accounts.verify() == ()


async def test_what_a_full_disk_did_not_settle_is_settled_when_there_is_room(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for the end of each call that began; but a disk may be broken."""
    held = [await reserve(accounts, accounts.local_principal(), f"r{number:03}") for number in range(9)]
    usage = Usage(prompt_tokens=5, completion_tokens=1)

    def full(fd: int, line: bytes, at: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    for reservation in held:
        with pytest.raises(StorageFull):
            await accounts.settle(reservation, usage)
    with pytest.raises(StorageFull):
        await accounts.ledger.settle_late()
    monkeypatch.undo()
    charge = await accounts.settle(held[-1], Usage(), outcome="failed")
    assert (charge.outcome, charge.buckets.uncached) == ("finished", 5)  # what came first holds
    assert await accounts.ledger.settle_late() == len(held) - 1
    assert await accounts.ledger.settle_late() == 0
    assert accounts.verify() == ()
    rows = accounts.usage_rows(limit=1000)
    assert {(row.outcome, row.charge) for row in rows} == {("finished", 5 * 950 + 4000)}


async def test_while_the_tables_are_full_calls_end_and_none_begins(accounts: Accounts) -> None:
    held = [await reserve(accounts, accounts.local_principal(), f"r{number:03}") for number in range(400)]
    store = accounts.store

    def grow(room: int) -> None:
        pages = store.read("PRAGMA page_count")[0][0]
        store._connection.execute(f"PRAGMA max_page_count={pages + room}").fetchone()

    store.write_now(lambda db: db.execute("CREATE TABLE ballast (x BLOB)"))
    grow(0)
    usage = Usage(prompt_tokens=5, completion_tokens=1)
    for reservation in held:
        await accounts.settle(reservation, usage)
    with pytest.raises(StorageFull):
        for number in range(10_000):
            await reserve(accounts, accounts.local_principal(), f"s{number:05}")
    grow(1000)
    accounts.usage_rows()
    await reserve(accounts, accounts.local_principal(), "t")
    assert accounts.verify() == ()
    rows = accounts.usage_rows(before="s", limit=1000)
    assert len(rows) == 400
    assert {(row.outcome, row.charge) for row in rows} == {("finished", 5 * 950 + 4000)}


async def test_a_price_is_never_edited(accounts: Accounts) -> None:
    await reserve(accounts, accounts.local_principal(), "r1")
    text = '[[price]]\nid = "kimi-k2.6"\nfrom = 2026-04-20\ninput = 0.5\ncached_input = 0\noutput = 1\n'
    accounts.prices = PriceBook(parse_prices(text, "x"))
    with pytest.raises(ConfigError, match="later `from`"):
        await reserve(accounts, accounts.local_principal(), "r2")
    assert accounts.verify() == ()


async def test_rows_page_from_the_newest(accounts: Accounts) -> None:
    for number in range(5):
        await reserve(accounts, accounts.local_principal(), f"r{number}")
    page = accounts.usage_rows(limit=2)
    assert [row.request_id for row in page] == ["r4", "r3"]
    rest = accounts.usage_rows(before="r3")
    assert [row.request_id for row in rest] == ["r2", "r1", "r0"]


@pytest.fixture
def synced(tmp_path: Path) -> Iterator[Accounts]:
    """Each call waits for the disk, twice."""
    with Accounts.open(tmp_path, Settings(home=tmp_path, ledger_durability="power")) as accounts:
        yield accounts


async def test_a_cancelled_reserve_is_closed(synced: Accounts) -> None:
    await reserve(synced, synced.local_principal(), "r0")
    held, go = threading.Event(), threading.Event()
    holding = asyncio.create_task(synced.store.write(lambda _: (held.set(), go.wait(10))))
    assert await asyncio.to_thread(held.wait, 10)
    task = asyncio.create_task(reserve(synced, synced.local_principal(), "r1"))
    await asyncio.sleep(0)
    assert [entry.request_id for _, entry in synced.store.waiting()] == ["r1"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    await holding
    row = synced.usage_rows()[0]
    assert (row.request_id, row.outcome, row.charge) == ("r1", "aborted", 0)
    assert synced.verify() == ()


async def test_a_call_that_waits_for_the_disk_is_posted_when_it_is_answered(synced: Accounts) -> None:
    reservation = await reserve(synced, synced.local_principal(), "r1")
    assert synced.store.read_posted("SELECT outcome FROM request") == [("open",)]
    await synced.settle(reservation, Usage(prompt_tokens=7))
    assert synced.store.read_posted("SELECT outcome FROM request") == [("finished",)]


async def test_a_cancelled_wait_does_not_undo_a_settle(synced: Accounts) -> None:
    accounts = synced
    reservation = await reserve(accounts, accounts.local_principal(), "r1")
    task = asyncio.ensure_future(accounts.settle(reservation, Usage(prompt_tokens=7)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    charge = await accounts.settle(reservation, Usage())
    assert charge.buckets.uncached == 7


CHILD = """
import asyncio, sys
from pathlib import Path
from perilune.accounts.accounts import Accounts
from perilune.accounts.request_ids import new_request_id
from perilune.chat.messages import Usage
from perilune.settings import Settings
from perilune.store import Store

async def caller(accounts):
    principal = accounts.local_principal()
    while True:
        request_id = new_request_id()
        reservation = await accounts.reserve(principal, request_id=request_id, model="m", price="kimi-k2.6",
                                             prompt_bound=100, max_tokens=10)
        await asyncio.sleep(0)
        charge = await accounts.settle(reservation, Usage(prompt_tokens=50, completion_tokens=5))
        print(request_id, charge.nano_usd, flush=True)

async def main():
    home = Path(sys.argv[1])
    accounts = Accounts.open(home, Settings(home=home, prepaid=True, activation_usd=0))
    accounts.wallets.enter(1, "deposit", 10**12, "paid", actor="test")
    accounts.wallets.enter(1, "voucher", 10**6, "granted", actor="test")
    await asyncio.gather(*(caller(accounts) for _ in range(16)))

asyncio.run(main())
"""


def test_no_acknowledged_row_is_lost_to_kill_9(tmp_path: Path) -> None:
    chance = random.Random(5)
    acknowledged: dict[str, int] = {}
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(perilune.__file__).parents[1])},
        )
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        time.sleep(chance.uniform(0.02, 0.15))
        os.kill(child.pid, signal.SIGKILL)
        lines += child.stdout.read().splitlines(keepends=True)
        child.stdout.close()
        child.wait()
        for line in lines:
            if line.endswith("\n"):
                request_id, charge = line.split()
                acknowledged[request_id] = int(charge)
    assert len(acknowledged) >= 3
    with opened(tmp_path) as accounts:
        rows = {row.request_id: row for row in accounts.usage_rows(limit=1_000_000)}
        for request_id, charge in acknowledged.items():
            assert (rows[request_id].outcome, rows[request_id].charge) == ("finished", charge)
        assert all(row.outcome in ("finished", "orphaned") for row in rows.values())
        assert accounts.verify() == ()
        state = accounts.organisations.state(1)
        charged = sum(row.charge for row in rows.values())
        assert (state.cash, state.voucher, state.reserved) == (10**12 + 10**6 - charged, 0, 0)
    assert all(reserved == 0 for _, reserved in balances(tmp_path))


FIRST_TABLES = 8
"""Statements of the schema as the first version of Perilune wrote it."""


async def test_books_of_the_first_version_are_taken_over(tmp_path: Path) -> None:
    Store(tmp_path / "accounts.db", SCHEMA[:FIRST_TABLES]).close()
    with sqlite3.connect(tmp_path / "accounts.db") as connection:
        connection.executescript(
            """INSERT INTO organisation (id, name) VALUES (1, 'local');
            INSERT INTO account (id, spent) VALUES (1, 28500), (2, 28500);
            INSERT INTO project (id, organisation_id, account_id, name) VALUES (1, 1, 1, 'local');
            INSERT INTO api_key (id, project_id, account_id, digest, hint, name, scopes, created_ms)
                VALUES (1, 1, 2, x'00', 'plk_', 'old', 'chat', 1);
            INSERT INTO price_version VALUES (1, 'kimi-k2.6@2026-04-20', 950000000, 160000000, 4000000000);
            INSERT INTO request (id, key_id, project_id, price_id, model, outcome, reserved, charge, uncached,
                opened_ms, settled_ms) VALUES ('r0', 1, 1, 1, 'm', 'finished', 99, 28500, 30, 1, 2);"""
        )
    connection.close()
    (tmp_path / "key-secret").write_bytes(bytes(32))
    with opened(tmp_path) as accounts:
        assert accounts.verify() == ()
        assert accounts.organisations.state(1).available == 0
        reservation = await reserve(accounts, accounts.local_principal(), "r1")
        await accounts.settle(reservation, Usage(prompt_tokens=30))
        assert [row.charge for row in accounts.usage_rows()] == [28_500, 28_500]
        assert accounts.fold() == 1  # of January 1970
        assert accounts.verify() == ()
