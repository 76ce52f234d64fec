"""What a server does beside answering, in a running one: closed months are folded, last uses are kept, and
both go on after whatever went wrong."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from admin_server import Door, running

from perilune.accounts.accounts import Accounts
from perilune.accounts.request_ids import new_request_id
from perilune.api import upkeep
from perilune.chat.messages import Usage
from perilune.errors import StorageFull
from perilune.settings import Settings
from perilune.store import Reader

YEAR_2020 = 1_577_880_000.0


async def seen(home: Path, query: str, good: Callable[[int | None], bool]) -> int:
    """What the database says, once it is good; looked at from beside, so nothing but the server writes it."""
    reader = Reader(home / "accounts.db")
    try:
        async with asyncio.timeout(10):
            while not good(found := reader.read(query)[0][0]):  # noqa: ASYNC110  a database tells nobody
                await asyncio.sleep(0.01)
    finally:
        reader.close()
    assert found is not None
    return int(found)


async def test_the_last_use_of_a_key_is_written_each_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upkeep.USES_EVERY_S == 60
    monkeypatch.setattr(upkeep, "USES_EVERY_S", 0.02)
    async with running(tmp_path / "home") as door:
        used = "SELECT last_used_ms FROM api_key WHERE id = 1"
        first = await use(door, used, 0)
        assert await use(door, used, first) > first


async def use(door: Door, query: str, after: int) -> int:
    await asyncio.sleep(0.002)  # another millisecond
    assert (await door.act("keys/list"))[0] == 200
    return await seen(door.home, query, lambda found: (found or 0) > after)


async def test_closed_months_are_folded(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Accounts.open(home, Settings.load(home, {}, {}), lambda: YEAR_2020) as accounts:
        reservation = await accounts.reserve(
            accounts.local_principal(),
            request_id=new_request_id(),
            model="m",
            price="free",
            prompt_bound=1,
            max_tokens=1,
        )
        await accounts.settle(reservation, Usage(prompt_tokens=1, cached_tokens=0, completion_tokens=1))
    async with running(home):
        assert await seen(home, "SELECT SUM(calls) FROM carried", lambda found: found is not None) == 1
        assert await seen(home, "SELECT COUNT(*) FROM request", lambda found: found == 0) == 0


async def test_folding_is_tried_again_whatever_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "EVERY_S", 0.0)
    monkeypatch.setattr(upkeep, "PAUSE_S", 0.0)
    steps: list[int | Exception] = [StorageFull("full"), sqlite3.IntegrityError("odd"), 2000, 7, 0]
    over = asyncio.Event()

    async def step() -> int:
        if not steps:
            over.set()
            return 0
        done = steps.pop(0)
        if isinstance(done, Exception):
            raise done
        return done

    with Accounts.open(tmp_path, Settings(home=tmp_path)) as accounts, caplog.at_level(logging.INFO):
        monkeypatch.setattr(accounts, "fold_step", step)
        task = asyncio.create_task(upkeep.keep_up(accounts))
        async with asyncio.timeout(10):
            await over.wait()
        task.cancel()
        await asyncio.wait({task})
    assert [record.getMessage() for record in caplog.records] == [
        "closed months were not folded: full",
        "closed months were not folded",
        "folded 2007 calls of closed months",
    ]


async def test_late_calls_are_settled_whatever_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "LATE_EVERY_S", 0.0)
    results: list[int | Exception] = [0, StorageFull("full"), sqlite3.IntegrityError("odd"), 3]
    over = asyncio.Event()

    async def settle_late() -> int:
        if not results:
            over.set()
            return 0
        done = results.pop(0)
        if isinstance(done, Exception):
            raise done
        return done

    with Accounts.open(tmp_path, Settings(home=tmp_path)) as accounts, caplog.at_level(logging.INFO):
        monkeypatch.setattr(accounts.ledger, "settle_late", settle_late)
        task = asyncio.create_task(upkeep.keep_up(accounts))
        async with asyncio.timeout(10):
            await over.wait()
        task.cancel()
        await asyncio.wait({task})
    assert [record.getMessage() for record in caplog.records] == [
        "calls that have ended are not settled yet: full",
        "calls that have ended are not settled yet",
        "settled 3 calls that had ended while the disk was full",
    ]
