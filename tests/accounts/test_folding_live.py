"""Closed months fold while calls run, in steps that stay short, and `kill -9` in the middle leaves books that
can be proved."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import perilune
from perilune.accounts.accounts import Accounts
from perilune.accounts.folding import first_kept_ms, fold_all, fold_step
from perilune.accounts.keys import Principal
from perilune.accounts.request_ids import new_request_id
from perilune.accounts.usage import Total, totals
from perilune.chat.messages import Usage
from perilune.settings import Settings
from perilune.store import Reader, Store

SOURCE = str(Path(perilune.__file__).parents[1])
VALUES = {"prepaid": True, "activation_usd": 0, "ledger_months": 1}
NOW = time.time()
BY = ("month", "key", "model", "price")
USAGE = Usage(prompt_tokens=50, cached_tokens=20, completion_tokens=7, reasoning_tokens=2)


def old_and_new(home: Path, old: int, months: int = 3) -> None:
    """A HOME with so many calls of two keys, spread over closed months that are not kept."""
    at = [NOW]

    async def fill() -> None:
        with Accounts.open(home, Settings.load(home, VALUES, {}), lambda: at[0]) as accounts:
            accounts.wallets.enter(1, "deposit", 10**12, "paid", actor="test")
            accounts.wallets.enter(1, "voucher", old * 30_000, "granted", actor="test")
            keys = [accounts.local_principal(), accounts.authenticate(accounts.create_key("o"), "chat")]
            for month in range(months):
                at[0] = NOW - (90 + 31 * month) * 86_400
                await asyncio.gather(
                    *(call(accounts, keys[number % 2], f"m{number % 3}") for number in range(old // months))
                )

    asyncio.run(fill())


async def call(accounts: Accounts, principal: Principal, model: str) -> None:
    reservation = await accounts.reserve(
        principal,
        request_id=new_request_id(),
        model=model,
        price="kimi-k2.6",
        prompt_bound=100,
        max_tokens=10,
    )
    await asyncio.sleep(0)
    await accounts.settle(reservation, USAGE, reasoning=2)


def old_totals(source: Reader | Store) -> list[Total]:
    """Of the months that are folded: of their rows and of their sums, together."""
    return totals(source, BY, until=datetime.fromtimestamp(first_kept_ms(NOW, 1) / 1000, UTC).date())


def test_calls_go_on_while_months_are_folded(tmp_path: Path) -> None:
    old_and_new(tmp_path, 600)
    watcher = Reader(tmp_path / "accounts.db")
    before, made, folded = old_totals(watcher), Counter[str](), 0

    async def caller(accounts: Accounts, number: int) -> None:
        while folding:
            await call(accounts, accounts.local_principal(), f"m{number}")
            made[f"m{number}"] += 1

    async def both(accounts: Accounts) -> None:
        nonlocal folding, folded
        callers = [asyncio.create_task(caller(accounts, number)) for number in range(8)]
        while done := await fold_step(accounts.store, first_kept_ms(NOW, 1), 20):
            assert done <= 20
            folded += done
            assert old_totals(watcher) == before  # at every moment, for whoever looks
        folding = False
        await asyncio.gather(*callers)

    folding = True
    with Accounts.open(tmp_path, Settings.load(tmp_path, VALUES, {})) as accounts:
        asyncio.run(both(accounts))
        assert accounts.verify() == ()
        assert (folded, accounts.store.read("SELECT SUM(calls) FROM carried")) == (600, [(600,)])
        kept = Counter(row.model for row in accounts.usage_rows(limit=1_000_000))
        assert kept == made and sum(made.values()) > 50
    watcher.close()


def test_a_step_is_no_longer_in_a_larger_ledger(tmp_path: Path) -> None:
    """In instructions of SQLite's machine. More rows of more days and months come after those it folds."""

    def instructions(home: Path, copies: int) -> int:
        old_and_new(home, 30)
        count = 0

        def tick() -> None:
            nonlocal count
            count += 1

        def step(connection: sqlite3.Connection) -> None:
            connection.set_progress_handler(tick, 10)

        with Accounts.open(home, Settings.load(home, VALUES, {})) as accounts:
            accounts.store.write_now(
                lambda connection: connection.executemany(
                    """INSERT INTO request SELECT id || ?, key_id, project_id, price_id, model, outcome,
                        estimated, reserved, charge, uncached, cached, output, reasoning, opened_ms,
                        settled_ms + ? * 1000, prepaid, from_voucher, searches
                        FROM request WHERE length(id) = 26""",
                    [(f"-{number}", number) for number in range(1, copies)],
                )
            )
            accounts.store.write_now(step)
            assert asyncio.run(fold_step(accounts.store, first_kept_ms(NOW, 1), 20)) == 20
        return count

    small, large = instructions(tmp_path / "a", 10), instructions(tmp_path / "b", 300)
    assert large < 1.2 * small


WITHIN = """
import asyncio, os, signal, sys
from pathlib import Path
from perilune.accounts.accounts import Accounts
from perilune.accounts.folding import fold_step
from perilune.settings import Settings

left = int(sys.argv[3])

def tick():
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

home = Path(sys.argv[1])
accounts = Accounts.open(home, Settings.load(home, {"prepaid": True, "activation_usd": 0}, {}))
accounts.store.write_now(lambda connection: connection.set_progress_handler(tick, 1))
asyncio.run(fold_step(accounts.store, int(sys.argv[2]), 20))
print(left)
"""


def test_killed_within_a_step(tmp_path: Path) -> None:
    """At one instruction of SQLite's machine after the other, in strides, until the step gets to its end."""
    old_and_new(tmp_path / "home", 60)
    with closing(Reader(tmp_path / "home" / "accounts.db")) as reader:
        before = old_totals(reader)
    cut, ends = first_kept_ms(NOW, 1), []
    for killed_after in (700, 1900, 2500, 3100, 1_000_000):
        home = tmp_path / str(killed_after)
        shutil.copytree(tmp_path / "home", home)
        done = subprocess.run(
            [sys.executable, "-c", WITHIN, str(home), str(cut), str(killed_after)],
            env={**os.environ, "PYTHONPATH": SOURCE},
            capture_output=True,
            text=True,
            check=False,
        )
        with Accounts.open(home, Settings.load(home, VALUES, {})) as accounts:
            assert accounts.verify() == ()
            assert old_totals(accounts.store) == before
            carried = accounts.store.read("SELECT COALESCE(SUM(calls), 0) FROM carried")[0][0]
        ends.append((done.returncode, carried))
    assert ends == [(-signal.SIGKILL, 0)] * 4 + [(0, 20)]


CHILD = """
import asyncio, sys
from pathlib import Path
from perilune.accounts.accounts import Accounts
from perilune.accounts.request_ids import new_request_id
from perilune.accounts.folding import first_kept_ms, fold_step
from perilune.chat.messages import Usage
from perilune.settings import Settings

async def caller(accounts):
    while True:
        request_id = new_request_id()
        reservation = await accounts.reserve(accounts.local_principal(), request_id=request_id, model="live",
                                             price="kimi-k2.6", prompt_bound=100, max_tokens=10)
        await asyncio.sleep(0)
        await accounts.settle(reservation, Usage(prompt_tokens=50, completion_tokens=5))
        print(request_id, flush=True)

async def folder(accounts):
    while done := await fold_step(accounts.store, first_kept_ms(float(sys.argv[2]), 1), 5):
        print("folded", done, flush=True)
        await asyncio.sleep(0.002)

async def main():
    home = Path(sys.argv[1])
    accounts = Accounts.open(home, Settings.load(home, {"prepaid": True, "activation_usd": 0}, {}))
    await asyncio.gather(folder(accounts), *(caller(accounts) for _ in range(8)))

asyncio.run(main())
"""


def test_killed_in_the_middle_of_folding(tmp_path: Path) -> None:
    old_and_new(tmp_path, 1500)
    with closing(Reader(tmp_path / "accounts.db")) as reader:
        before = old_totals(reader)
    chance, folded, answered = random.Random(7), 0, set[str]()
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), str(NOW)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": SOURCE},
        )
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        while not lines[-1].startswith("folded"):  # however slow the machine is
            lines.append(child.stdout.readline())
            assert lines[-1], "the child ended by itself"
        time.sleep(chance.uniform(0.01, 0.12))
        os.kill(child.pid, signal.SIGKILL)
        lines += child.stdout.read().splitlines(keepends=True)
        child.stdout.close()
        child.wait()
        whole = [line.split() for line in lines if line.endswith("\n")]
        answered |= {words[0] for words in whole if words[0] != "folded"}
        folded += sum(int(words[1]) for words in whole if words[0] == "folded")
        with Accounts.open(tmp_path, Settings.load(tmp_path, VALUES, {}), close_orphans=False) as accounts:
            assert accounts.verify() == ()  # as the kill left them, open rows and all
            assert old_totals(accounts.store) == before
            carried = accounts.store.read("SELECT COALESCE(SUM(calls), 0) FROM carried")[0][0]
            assert folded <= carried < 1500, "the kill came after the end of the folding"
    assert folded > 0
    with Accounts.open(tmp_path, Settings.load(tmp_path, VALUES, {})) as accounts:
        rows = {row.request_id: row.outcome for row in accounts.usage_rows(limit=100_000)}
        assert {rows[request_id] for request_id in answered} == {"finished"}
        assert fold_all(accounts.store, first_kept_ms(NOW, 1)) == 1500 - carried
        assert accounts.verify() == ()
        assert all(row.model == "live" for row in accounts.usage_rows(limit=100_000))
