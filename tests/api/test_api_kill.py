"""`kill -9` of a real `perilune serve` under a mixed load, again and again: no answer without its row, no
reservation left behind, no call charged twice, and every balance the sum of its entries and charges."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from kill_load import MODEL, Call, Crowd, Endpoint, Fate

from perilune.accounts.accounts import Accounts
from perilune.accounts.prices import Buckets, PriceBook
from perilune.accounts.rows import UsageRow
from perilune.settings import Settings

SOURCE = Path(__file__).parents[2] / "src"
CLIENTS = 24
DEPOSIT, VOUCHER = 10**12, 10**6
"""Nano-USD of each organisation. The voucher runs out in the middle of the load, the cash does not."""
Rows = dict[str, UsageRow]


class House:
    """A HOME with two organisations that pay in advance, and all that was ever seen of its calls."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home = home
        self.chance = random.Random(seed)
        home.mkdir()
        (home / "perilune.toml").write_text("prepaid = true\nactivation_usd = 0\n")
        self.settings = Settings.load(home, {}, {})
        with Accounts.open(home, self.settings) as accounts:
            other = accounts.organisations.create("other", actor="test")
            project = accounts.organisations.projects()[-1].id
            for organisation in (1, other):
                accounts.wallets.enter(organisation, "deposit", DEPOSIT, "paid", actor="test")
                accounts.wallets.enter(organisation, "voucher", VOUCHER, "granted", actor="test")
            self.keys = [
                json.loads((home / "keys.json").read_text())["project_key"],
                accounts.create_key("limited", budget=DEPOSIT),
                accounts.create_key("theirs", project_id=project),
            ]
            self.key_ids = {key: accounts.authenticate(key, "chat").key_id for key in self.keys}
        self.price = PriceBook.load(self.settings).price("kimi-k2.6")
        self.calls: list[Call] = []
        self.rows: Rows = {}
        """As they were after the last start."""
        self.open: dict[str, tuple[int, int]] = {}
        """Left open by the last kill: request id -> (prompt as it was guessed, reserved)."""

    @asynccontextmanager
    async def serving(self, endpoint: Endpoint) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(SOURCE),
            "PERILUNE_MODEL_URL": endpoint.url,
            "PERILUNE_MODEL_NAME": MODEL,
            "PERILUNE_LOG_LEVEL": "error",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "perilune", "serve", "--home", str(self.home), "--port", "0",
            env=env, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(60):
                first = (await process.stdout.readline()).decode()
                await process.stdout.readuntil(b"Ctrl-C\n")
            yield process, first.split(" at ")[1].strip()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def kill_under_load(self, endpoint: Endpoint) -> None:
        """One round: start, prove what the kill before left, load, kill."""
        async with self.serving(endpoint) as (process, url):
            self.check()
            crowd = Crowd(url, self.keys, self.chance, first=len(self.calls))
            async with crowd.calling(CLIENTS):
                await self.moment(crowd)
                process.send_signal(signal.SIGKILL)
            assert await process.wait() == -signal.SIGKILL
            self.calls += crowd.calls
        self.open = self.left_open()

    async def moment(self, crowd: Crowd) -> None:
        """Until the kill: mostly some answers, however slow the machine, and sometimes the very beginning."""
        if self.chance.random() < 0.8:
            wanted = self.chance.randint(15, 60)
            async with asyncio.timeout(60):
                while crowd.whole < wanted:  # noqa: ASYNC110  the crowd has no event
                    await asyncio.sleep(0.002)
        await asyncio.sleep(self.chance.uniform(0.0, 0.1))

    def left_open(self) -> dict[str, tuple[int, int]]:
        with TemporaryDirectory(dir=self.home.parent) as folder:
            copy = shutil.copytree(self.home, Path(folder) / "home")
            with Accounts.open(copy, self.settings, close_orphans=False) as accounts:
                rows = accounts.usage_rows(limit=10_000_000)
        return {row.request_id: (row.uncached, row.reserved) for row in rows if row.outcome == "open"}

    # ---- what must hold once the server is up again

    def check(self) -> None:
        with Accounts.peek(self.home, self.settings) as accounts:
            assert accounts.verify() == ()
            rows = {row.request_id: row for row in accounts.usage_rows(limit=10_000_000)}
            states = accounts.organisations.states()
            projects = {one.id: one.organisation_id for one in accounts.organisations.projects()}
        charged: Counter[int] = Counter()
        for row in rows.values():
            assert row.outcome != "open"
            assert row.charge == self.price.charge(Buckets(row.uncached, row.cached, row.output))
            charged[projects[row.project_id]] += row.charge
        for state in states:
            assert state.reserved == 0
            assert state.cash + state.voucher == DEPOSIT + VOUCHER - charged[state.id]
            assert state.voucher == max(0, VOUCHER - charged[state.id])
        assert {request_id: rows[request_id] for request_id in self.rows} == self.rows  # none charged again
        self.check_orphans(rows)
        self.check_answers(rows)
        self.rows = rows

    def check_orphans(self, rows: Rows) -> None:
        """The documented policy: the prompt as it was counted is billed, and nothing of the answer."""
        orphans = {row.request_id for row in rows.values() if row.outcome == "orphaned"}
        assert orphans - self.rows.keys() == self.open.keys()
        for request_id, (prompt, reserved) in self.open.items():
            row = rows[request_id]
            assert (row.uncached, row.cached, row.output, row.estimated) == (prompt, 0, 0, True)
            assert 0 < row.charge < reserved

    def check_answers(self, rows: Rows) -> None:
        """Everything that a client got whole is settled with the very usage that the client saw."""
        told = [call for call in self.calls if call.request_id]
        assert len({call.request_id for call in told}) == len(told)
        assert len(rows) <= len(self.calls)
        for call in self.calls:
            if call.usage is None:
                continue
            row, usage, fate = rows[call.request_id], call.usage, Fate.of(call.number)
            assert (row.outcome, row.key_id) == ("finished", self.key_ids[call.key])
            assert (row.uncached + row.cached, row.cached, row.output) == (
                usage["prompt_tokens"], usage["cached_tokens"], usage["completion_tokens"],
            )  # fmt: skip
            assert row.estimated == (fate.usage is None)
            if fate.usage is not None:
                assert {name: usage[name] for name in fate.usage} == fate.usage

    def verify_by_command(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "perilune", "ledger", "verify", "--home", str(self.home)],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


async def killed(folder: Path, rounds: int, seed: int) -> House:
    house = House(folder / "home", seed)
    orphans = 0
    async with Endpoint() as endpoint:
        for _ in range(rounds):
            await house.kill_under_load(endpoint)
            orphans += len(house.open)
        async with house.serving(endpoint) as (process, _):
            house.check()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        busy = [number for number in endpoint.heard if Fate.of(number).trouble == "busy once"]
        assert all(count == 1 or number in busy for number, count in endpoint.heard.items())
    assert orphans >= rounds, "the kills came while nothing was under way"
    whole = sum(call.usage is not None for call in house.calls)
    seen = Counter(row.outcome for row in house.rows.values())
    assert whole >= 10 * rounds and {"finished", "aborted", "failed", "orphaned"} <= seen.keys(), seen
    assert house.left_open() == {}
    print(f"{rounds} kills, {len(house.calls)} calls, {whole} whole answers; rows: {dict(seen)}")
    return house


async def test_killed_five_times_under_load(tmp_path: Path) -> None:
    house = await killed(tmp_path, 5, seed=1)
    proof = house.verify_by_command()
    assert (proof.returncode, proof.stderr) == (0, "")
    assert proof.stdout.startswith(f"{len(house.rows)} calls, 0 folded calls and 4 entries agree")
    with closing(sqlite3.connect(house.home / "accounts.db")) as connection, connection:
        connection.execute("UPDATE wallet SET cash = cash + 1 WHERE organisation_id = 2")
    proof = house.verify_by_command()
    assert proof.returncode == 1 and "organisation 2 has cash" in proof.stderr


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(5))
async def test_killed_ten_times_under_load(tmp_path: Path, seed: int) -> None:
    house = await killed(tmp_path, 10, seed=100 + seed)
    assert house.verify_by_command().returncode == 0
