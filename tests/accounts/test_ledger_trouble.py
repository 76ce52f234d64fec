"""The ledger beside operators and other threads, on disks that take nothing, and after power cuts."""

import asyncio
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perilune.accounts import audit
from perilune.accounts.accounts import Accounts
from perilune.accounts.purses import Purses
from perilune.accounts.rows import Reservation
from perilune.chat.messages import Usage
from perilune.errors import InputError, StorageFull, StoreError
from perilune.settings import Settings
from perilune.store import daybook, writer

USAGE = Usage(prompt_tokens=50, completion_tokens=5)
ENDLESS = """WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 100000000)
    SELECT MAX(x) FROM n"""
CHARGE = 50 * 950 + 5 * 4000


def opened(home: Path, **more: Any) -> Accounts:
    return Accounts.open(home, Settings(home=home, prepaid=True, activation_usd=0, **more))


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    with opened(tmp_path) as accounts:
        accounts.wallets.enter(1, "deposit", 10**12, "paid", actor="test")
        yield accounts


async def reserve(accounts: Accounts, request_id: str) -> Reservation:
    return await accounts.reserve(
        accounts.local_principal(),
        request_id=request_id,
        model="m",
        price="kimi-k2.6",
        prompt_bound=100,
        max_tokens=10,
    )


def drifted(accounts: Accounts) -> bool:
    wallets = [
        ours.of(accounts.local_principal()).wallet
        for ours in (accounts.ledger._purses, Purses(accounts.store))
    ]
    return len({(one.cash, one.voucher, one.reserved) for one in wallets}) > 1


async def test_credit_that_is_taken_back_while_a_call_settles_is_paid_in_cash(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts.wallets.enter(1, "voucher", CHARGE, "granted", actor="test")
    held = [await reserve(accounts, f"r{number}") for number in range(3)]
    inside, go = threading.Event(), threading.Event()
    record = audit.record

    def slowly(*args: Any) -> None:
        inside.set()
        assert go.wait(10)
        record(*args)

    monkeypatch.setattr(audit, "record", slowly)
    correcting = asyncio.create_task(
        asyncio.to_thread(
            accounts.wallets.enter, 1, "correction", -CHARGE, "back", to_voucher=True, actor="test"
        )
    )
    assert await asyncio.to_thread(inside.wait, 10)
    await accounts.settle(held[0], USAGE)  # takes credit that is about to be gone
    go.set()
    await correcting
    await accounts.settle(held[1], USAGE)
    assert accounts.verify() == ()
    assert not drifted(accounts)
    await accounts.settle(held[2], USAGE)
    state = accounts.organisations.state(1)
    assert (state.cash, state.voucher, state.reserved) == (10**12 - 3 * CHARGE, 0, 0)
    assert accounts.store.read("SELECT DISTINCT from_voucher FROM request") == [(0,)]


async def test_callers_and_operators_of_several_threads(accounts: Accounts) -> None:
    """Each thread with a loop of its own; one grants and takes back all the time, one looks on."""
    done = threading.Event()
    failures: list[Exception] = []

    def caller(place: int) -> None:
        async def call() -> None:
            for number in range(150):
                made = await reserve(accounts, f"t{place}-{number:04}")
                await asyncio.sleep(0)
                await accounts.settle(made, USAGE)

        guarded(lambda: asyncio.run(call()))

    def operator() -> None:
        number = 0
        while not done.is_set():
            number += 1
            accounts.wallets.enter(1, "voucher", 3 * CHARGE, f"g{number}", actor="test")
            try:
                accounts.wallets.enter(1, "correction", -CHARGE, f"c{number}", to_voucher=True, actor="test")
            except InputError:
                continue  # it was spent already
            accounts.verify()

    def guarded(work: Any) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  of a thread: the test raises it
            failures.append(error)

    callers = [threading.Thread(target=caller, args=(place,)) for place in range(4)]
    operating = threading.Thread(target=guarded, args=(operator,))
    for thread in (*callers, operating):
        thread.start()
    for thread in callers:
        thread.join(60)
    done.set()
    operating.join(60)
    assert failures == []
    assert accounts.verify() == ()
    assert not drifted(accounts)
    assert {row.charge for row in accounts.usage_rows(limit=1000)} == {CHARGE}
    assert accounts.organisations.state(1).reserved == 0


async def test_a_long_query_keeps_no_call_waiting(accounts: Accounts) -> None:
    await accounts.settle(await reserve(accounts, "r1"), USAGE)
    reading = threading.Thread(target=lambda: stopped(lambda: accounts.store.read(ENDLESS)))
    reading.start()
    await asyncio.sleep(0.05)
    await accounts.store.write(lambda connection: None)  # memory is read again
    began = time.monotonic()
    await accounts.settle(await reserve(accounts, "r2"), USAGE)
    assert reading.is_alive(), "the query was too short to keep anybody waiting"
    accounts.store._reader._connection.interrupt()
    reading.join(60)
    assert time.monotonic() - began < 5


def stopped(work: Any) -> None:
    with pytest.raises(StoreError, match="interrupted"):
        work()


async def test_what_has_begun_has_room_to_end(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daybook, "FILE_BYTES", 20_000)
    monkeypatch.setattr(daybook, "MOST_KEPT", 15_000)
    held = [await reserve(accounts, "r0000")]

    def full(fd: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageFull):
        for number in range(1, 1000):
            held.append(await reserve(accounts, f"r{number:04}"))
    assert len(held) > 10
    for made in held:
        await accounts.settle(made, USAGE)
    assert accounts.verify() == ()
    assert {row.outcome for row in accounts.usage_rows(limit=1000)} == {"finished"}


async def test_once_the_disk_has_refused_a_sync_no_call_begins_or_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = opened(tmp_path)
    accounts.wallets.enter(1, "deposit", 10**12, "paid", actor="test")
    made = await reserve(accounts, "r1")

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    with monkeypatch.context() as breaking:
        breaking.setattr(os, "fdatasync", broken)
        with pytest.raises(StoreError, match="the disk is broken"):
            accounts.store.write_now(lambda connection: None)
    with pytest.raises(StoreError, match="the disk is broken"):
        await reserve(accounts, "r2")
    with pytest.raises(StoreError, match="the disk is broken"):
        await accounts.settle(made, USAGE)
    accounts.store.close()


async def test_a_search_that_a_full_disk_did_not_release_is_closed_later(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await accounts.reserve_search(accounts.local_principal(), request_id="s1")

    def full(fd: int, line: bytes, at: int) -> int:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", full)
        with pytest.raises(StoreError):
            await accounts.release_search(made)
    assert await accounts.ledger.settle_late() == 1
    assert [(row.outcome, row.charge) for row in accounts.usage_rows()] == [("aborted", 0)]
    assert accounts.organisations.state(1).reserved == 0
    assert accounts.verify() == ()


async def test_orphans_share_what_is_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = opened(tmp_path)
    accounts.wallets.enter(1, "deposit", 10**12, "paid", actor="test")
    accounts.wallets.enter(1, "voucher", 100_000, "granted", actor="test")
    for number in range(3):
        await reserve(accounts, f"r{number}")
    accounts.close()
    with opened(tmp_path) as accounts:
        taken = accounts.store.read("SELECT charge, from_voucher FROM request ORDER BY id")
        assert taken == [(95_000, 95_000), (95_000, 5_000), (95_000, 0)]
        assert accounts.verify() == ()


async def test_books_that_do_not_fit_their_day_book_are_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "POST_EVERY_S", 600.0)
    accounts = opened(tmp_path)
    accounts.wallets.enter(1, "deposit", 10**12, "paid", actor="test")
    await accounts.settle(await reserve(accounts, "r1"), USAGE)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (*tmp_path.glob("accounts.db*"), tmp_path / "key-secret"):
        (copy / path.name).write_bytes(path.read_bytes())
    accounts.close()
    with sqlite3.connect(copy / "accounts.db") as connection:
        connection.execute(
            """INSERT INTO request (id, key_id, project_id, price_id, model, reserved, uncached, opened_ms)
            SELECT 'r1', k.id, k.project_id, v.id, 'm', 0, 0, 1 FROM api_key k, price_version v LIMIT 1"""
        )
    connection.close()
    with pytest.raises(StoreError, match="day-") as caught:
        opened(copy)
    assert "move them away" in str(caught.value.mend)
    for path in copy.glob("accounts.db-day-*"):
        path.rename(path.with_name("away"))
    opened(copy).close()
