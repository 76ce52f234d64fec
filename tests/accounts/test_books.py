"""`perilune ledger verify` over a real database that somebody has damaged: it says what disagrees."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest

from perilune.accounts.accounts import Accounts
from perilune.accounts.keys import Principal
from perilune.cli import main as cli
from perilune.errors import StoreError
from perilune.settings import Settings

SETTINGS = {"prepaid": True, "activation_usd": 0, "ledger_months": 1}
TEXT = "prepaid = true\nactivation_usd = 0\nledger_months = 1\n"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def on(self, day: str) -> None:
        self.now = datetime.fromisoformat(f"{day}T12:00:00+00:00").timestamp()

    def __call__(self) -> float:
        return self.now


class Used:
    """Calls as a server makes them, some months ago and now."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def call(self, principal: Principal, request_id: str, *, settled: bool = True) -> None:
        made = await self._accounts.reserve(
            principal,
            request_id=request_id,
            model="m",
            price="kimi-k2.6",
            prompt_bound=100,
            prompt_estimate=30,
            max_tokens=10,
        )
        if settled:
            usage = Counts(prompt_tokens=50, cached_tokens=20, completion_tokens=7)
            await self._accounts.settle(made, usage, reasoning=3)

    async def search(self, principal: Principal, request_id: str) -> None:
        made = await self._accounts.reserve_search(principal, request_id=request_id)
        await self._accounts.settle_search(made, found=True)


class Counts:
    def __init__(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = cached_tokens
        self.completion_tokens = completion_tokens


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HOME with two keys (2 and 3), a folded month, settled calls, a search, and a call that a dead process
    left open. Cash and vouchers have both been spent."""
    home, clock = tmp_path_factory.mktemp("books") / "home", Clock()
    clock.on("2026-01-20")

    async def fill() -> None:
        with Accounts.open(home, Settings.load(home, SETTINGS, {}), clock) as accounts:
            accounts.wallets.enter(1, "deposit", 10**10, "invoice", actor="test")
            accounts.wallets.enter(1, "voucher", 200_000, "gift", actor="test")
            accounts.wallets.enter(1, "correction", -5, "typo", actor="test")
            first = accounts.local_principal()
            other = accounts.authenticate(accounts.create_key("other"), "chat")
            used = Used(accounts)
            for number in range(4):
                await used.call((first, other)[number % 2], f"a{number}")
            await used.search(first, "a-search")
            clock.on("2026-04-20")
            for number in range(4):
                await used.call((first, other)[number % 2], f"b{number}")
            await used.search(other, "b-search")
            assert accounts.fold() == 5
            await used.call(first, "open", settled=False)
            assert accounts.verify() == ()

    asyncio.run(fill())
    (home / "perilune.toml").write_text(TEXT)
    return home


@pytest.fixture
def home(books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PERILUNE_HOME", raising=False)
    shutil.copytree(books, tmp_path / "home")
    return tmp_path / "home"


def change(home: Path, statements: str) -> None:
    with closing(sqlite3.connect(home / "accounts.db")) as connection, connection:
        before = connection.total_changes
        connection.executescript(statements)
        assert connection.total_changes > before, "the damage changed nothing"


def test_the_books_are_right_and_stay_as_they_are(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert cli.main(["ledger", "verify", "--home", str(home)]) == 0
        said = capsys.readouterr().out
        assert said.startswith("6 calls, 5 folded calls and 3 entries agree")
    with closing(sqlite3.connect(home / "accounts.db")) as connection:
        found = connection.execute("SELECT id FROM request WHERE outcome = 'open'").fetchall()
    assert found == [("open",)]


KEY_AND_PROJECT = "id IN (SELECT account_id FROM api_key WHERE id = 2 UNION SELECT account_id FROM project)"
"""The accounts that a call of key 2 spends in."""
COLUMNS = """key_id, project_id, price_id, model, outcome, estimated, reserved, charge, uncached, cached,
    output, reasoning, opened_ms, settled_ms, prepaid, from_voucher, searches"""

DAMAGES = {
    # entries and balance
    "cash": ("UPDATE wallet SET cash = cash + 1", "organisation 1 has cash"),
    "voucher": ("UPDATE wallet SET voucher = voucher + 1", "organisation 1 has voucher"),
    "deposited": ("UPDATE wallet SET deposited = 0", "organisation 1 has deposited 0"),
    "entry taken out": ("DELETE FROM entry WHERE kind = 'voucher'", "organisation 1 has voucher"),
    "entry changed": ("UPDATE entry SET cash = 1 WHERE kind = 'correction'", "organisation 1 has cash"),
    "entry and balance changed": (
        """UPDATE entry SET cash = cash + 9 WHERE kind = 'deposit';
        UPDATE wallet SET cash = cash + 9, deposited = deposited + 9""",
        "entry 1 of organisation 1 has no line in the audit",
    ),
    "entry without an operator": (
        """INSERT INTO entry (organisation_id, kind, cash, voucher, reference, note, actor, created_ms)
            VALUES (1, 'deposit', 7, 0, 'mine', '', 'me', 1);
        UPDATE wallet SET cash = cash + 7, deposited = deposited + 7""",
        "entry 4 of organisation 1 has no line in the audit",
    ),
    "act taken out": ("DELETE FROM audit WHERE act = 'account.voucher'", "line 3 does not follow"),
    "act that does not read": (
        "UPDATE audit SET detail = '{' WHERE act = 'account.voucher'",
        "entry 2 of organisation 1 has no line in the audit",
    ),
    # reservations and calls
    "reservation of a key without a call": (
        "UPDATE account SET reserved = reserved + 7 WHERE id = (SELECT account_id FROM api_key WHERE id = 3)",
        "api_key 3 has spent .* and reserved 7, its requests say .* and 0",
    ),
    "reservation of a wallet without a call": (
        "UPDATE wallet SET reserved = reserved + 7",
        "organisation 1 has reserved",
    ),
    "call without a reservation": (
        "UPDATE account SET reserved = 0; UPDATE wallet SET reserved = 0",
        r"project 1 has spent \d+ and reserved 0, its requests say \d+ and \d{3}",
    ),
    "open call taken out": (
        "DELETE FROM request WHERE outcome = 'open'",
        r"(?s)api_key 2 .* and 0\n.*organisation 1 has reserved",
    ),
    "open call that reserves less": (
        "UPDATE request SET reserved = reserved - 1 WHERE outcome = 'open'",
        "api_key 2 has spent",
    ),
    "open call that is charged": (
        "UPDATE request SET charge = 1 WHERE outcome = 'open'",
        "request open is open and charged 1",
    ),
    # settled twice
    "accounts charged twice": (
        f"""UPDATE account SET spent = spent + (SELECT charge FROM request WHERE id = 'b0')
            WHERE {KEY_AND_PROJECT}""",
        "(?s)api_key 2 has spent.*project 1 has spent",
    ),
    "wallet charged twice": (
        "UPDATE wallet SET cash = cash - (SELECT charge FROM request WHERE id = 'b0')",
        "organisation 1 has cash",
    ),
    "call written twice": (
        f"INSERT INTO request (id, {COLUMNS}) SELECT 'b9', {COLUMNS} FROM request WHERE id = 'b0'",
        "(?s)api_key 2 has spent.*project 1 has spent.*organisation 1 has cash",
    ),
    "settled and open again": (
        "UPDATE request SET outcome = 'open' WHERE id = 'b0'",
        "request b0 is open and charged",
    ),
    "folded and still there": (
        """UPDATE carried SET calls = calls + 1, uncached = uncached + 30, cached = cached + 20,
            output = output + 7, charge = charge + (SELECT charge FROM request WHERE id = 'b0'),
            from_cash = from_cash + (SELECT charge FROM request WHERE id = 'b0')
            WHERE key_id = 2 AND model = 'm'""",
        "(?s)api_key 2 has spent.*project 1 has spent.*organisation 1 has cash",
    ),
    # rows and prices
    "charge": ("UPDATE request SET charge = charge - 1 WHERE id = 'b1'", "request b1 is charged"),
    "tokens": ("UPDATE request SET output = output + 1 WHERE id = 'b1'", "request b1 is charged"),
    "price": ("UPDATE price_version SET output = output * 2", "request b0 is charged"),
    "share of the voucher": (
        "UPDATE request SET from_voucher = charge + 1 WHERE id = 'b1'",
        r"request b1 took \d+ of its charge",
    ),
    "another key's": ("UPDATE request SET key_id = 3 WHERE id = 'b0'", "(?s)api_key 2 .*api_key 3 "),
    "row taken out": ("DELETE FROM request WHERE id = 'b3'", "api_key 3 has spent"),
    # folded months
    "sum taken out": ("DELETE FROM carried WHERE key_id = 3", "api_key 3 has spent"),
    "sum's charge, by less than rounding": (
        "UPDATE carried SET charge = charge + 1 WHERE key_id = 3",
        "api_key 3 has spent",
    ),
    "sum's tokens": (
        "UPDATE carried SET cached = cached + 100 WHERE key_id = 3",
        "the sum of 2026-01, key 3, m is charged",
    ),
    "sum's searches": (
        "UPDATE carried SET searches = 2 WHERE searches = 1",
        r"2026-01, key 2, \$web_search is charged 5000000 for 1 calls, what they used costs 10000000",
    ),
    "sum of no calls": ("UPDATE carried SET calls = 0 WHERE key_id = 3", "for 0 calls"),
    "sum's price": (
        "UPDATE carried SET price_id = (SELECT MAX(id) FROM price_version) WHERE key_id = 3",
        "the sum of 2026-01, key 3, m is charged",
    ),
    "sum's share of vouchers": (
        "UPDATE carried SET from_cash = from_cash - 1, from_voucher = from_voucher + 1 WHERE key_id = 3",
        "(?s)organisation 1 has cash.*organisation 1 has voucher",
    ),
    "sum that took more than it charged": (
        "UPDATE carried SET from_cash = charge + 1 WHERE key_id = 3",
        r"key 3, m took \d+ of its charge \d+ from cash",
    ),
    "sum of another key": (
        "UPDATE carried SET key_id = 1 WHERE key_id = 3",
        "(?s)api_key 1 has spent 0.*api_key 3 has spent",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_says_what_was_done(home: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    statements, said = DAMAGES[damage]
    change(home, statements)
    assert cli.main(["ledger", "verify", "--home", str(home)]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert re.search(said, found.err), found.err


def test_books_that_cannot_be_closed_are_refused_in_words(home: Path) -> None:
    change(home, "UPDATE account SET reserved = 0; UPDATE wallet SET reserved = 0")
    with pytest.raises(StoreError, match=r"the books do not agree.*perilune ledger verify"):
        Accounts.open(home, Settings.load(home, SETTINGS, {}))
