"""keys, account, usage, compare and ledger on the command line: nobody owns HOME, or a server does."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import re
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from perilune.accounts.accounts import Accounts
from perilune.accounts.audit import record
from perilune.accounts.request_ids import new_request_id
from perilune.chat.messages import Usage
from perilune.cli import main as cli
from perilune.cli.desk import money
from perilune.settings import Settings
from perilune.store import HomeLock


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in [name for name in os.environ if name.startswith("PERILUNE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PERILUNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Said:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str, code: int = 0) -> str:
        assert cli.main(words) == code
        said = self._capsys.readouterr()
        return said.out if code == 0 else said.out + said.err


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(capsys)


def use(home: Path, calls: int = 2) -> None:
    """Some calls of the local project: 50,000 tokens in, 5,000 out each."""

    async def call(accounts: Accounts) -> None:
        reservation = await accounts.reserve(
            accounts.local_principal(),
            request_id=new_request_id(),
            model="kimi",
            price="kimi-k2.6",
            prompt_bound=50_000,
            max_tokens=5000,
        )
        await accounts.settle(reservation, Usage(prompt_tokens=50_000, completion_tokens=5000))

    async def all_calls() -> None:
        with Accounts.open(home, Settings(home=home)) as accounts:
            for _ in range(calls):
                await call(accounts)

    home.mkdir(exist_ok=True)
    asyncio.run(all_calls())


def test_keys_are_made_listed_limited_and_disabled(home: Path, said: Said) -> None:
    secret = said("keys", "create", "ci", "--budget", "2.50", "--expires", "30d").strip()
    with Accounts.open(home, Settings(home=home)) as accounts:
        assert accounts.authenticate(secret, "chat").key_name == "ci"
    keys = json.loads(said("keys", "list", "--json"))
    assert [key["name"] for key in keys] == ["first admin key", "first project key", "ci"]
    assert keys[2]["budget"] == 2_500_000_000 and keys[2]["scopes"] == ["chat"]
    said("keys", "budget", "3", "none")
    said("keys", "disable", "3")
    table = said("keys", "list")
    assert secret not in table and "disabled" in table
    assert "is over already" in said("keys", "create", "boss", "--admin", "--expires", "2020-01-01", code=2)
    with Accounts.open(home, Settings(home=home)) as accounts:
        accounts.create_key("boss", ("admin",), expires_ms=1_577_923_199_000)
    assert "expired 2020-01-01 23:59" in said("keys", "list")
    assert "no key 99" in said("keys", "disable", "99", code=2)


def test_balances_and_projects(home: Path, said: Said) -> None:
    assert "prepaid is off" in said("account", "show")
    assert "$5.00 available" in said("account", "topup", "5", "--reference", "inv-1")
    assert "nothing changed; $5.00" in said("account", "topup", "5", "--reference", "inv-1")
    assert "$7.25 available" in said("account", "voucher", "2.25", "--note", "welcome")
    assert "$6.00 available" in said("account", "correct", "-1.25")
    assert "organisation 2 (acme)" in said("account", "organisation", "acme")
    assert "project 3 (web)" in said("account", "project", "web", "--organisation", "2", "--budget", "9")
    said("account", "budget", "3", "none")
    assert "the tier kimi-0" in said("account", "tier", "kimi", "--organisation", "2")
    assert "no rate tier" in said("account", "tier", "gold", code=2)
    assert "the tier self-hosted" in said("account", "tier", "none", "--organisation", "2")
    found = json.loads(said("account", "show", "--json"))
    assert [one["available"] for one in found["organisations"]] == [6_000_000_000, 0]
    assert found["projects"][2]["budget"] is None
    entries = said("account", "entries").splitlines()
    assert len(entries) == 4 and "inv-1" in entries[3] and "welcome" in entries[2]
    assert re.search(r" 20\d\d-\d\d-\d\d \d\d:\d\d +deposit", entries[3])
    assert "account.organisation" in said("ledger", "audit")


def test_usage(home: Path, said: Said) -> None:
    use(home)
    rows = list(csv.DictReader(io.StringIO(said("usage", "--csv", "--by", "model,price"))))
    assert [(row["model"], row["calls"], row["charge_usd"]) for row in rows] == [("kimi", "2", "0.135000000")]
    calls = list(csv.DictReader(io.StringIO(said("usage", "--calls", "--csv"))))
    assert [(row["outcome"], row["uncached"]) for row in calls] == [("finished", "50000")] * 2
    assert len(said("usage", "--calls").splitlines()) == 2
    assert said("usage").split()[-1] == "0.135"
    (total,) = json.loads(said("usage", "--json", "--by", "key"))
    assert (total["key"], total["output"]) == ("2", 10_000)
    assert json.loads(said("usage", "--json", "--until", "2020-01-01")) == []
    assert "cannot group by 'colour'" in said("usage", "--by", "colour", code=2)
    lines = said("usage", "--calls", "--json").splitlines()
    assert [json.loads(line)["output"] for line in lines] == [5000] * 2
    today = datetime.now(UTC).date()
    days = ("--since", str(today - timedelta(1)), "--until", str(today + timedelta(1)))
    assert len(said("usage", "--calls", *days).splitlines()) == 2
    assert said("usage", "--calls", "--until", "2020-01-01") == ""
    assert said("usage", "--calls", "--csv", "--since", str(today + timedelta(1))).count("\n") == 1
    assert "leave --by out" in said("usage", "--calls", "--by", "day", code=2)


@pytest.mark.parametrize("command", [("usage",), ("ledger", "verify"), ("ledger", "audit"), ("compare",)])
def test_a_mistyped_home_is_not_made(tmp_path: Path, said: Said, command: tuple[str, ...]) -> None:
    """A nightly proof of books that are somewhere else would never fail."""
    there = tmp_path / "typo"
    assert "say where with --home" in said(*command, "--home", str(there), code=2)
    assert not there.exists()


def test_compare(home: Path, said: Said) -> None:
    use(home)
    ledger = said("compare").splitlines()
    assert ledger[0] == "100000 input + 0 cached + 10000 output tokens"
    named = said("compare", "--input", "50000", "--output", "5000")
    rows = {line.split()[0]: line.split()[1:] for line in named.splitlines()[2:]}
    assert rows["kimi-k2.6"] == ["0.048", "0.000", "0.020", "0.068", "1.5"]
    assert rows["gpt-5.4"] == ["0.125", "0.000", "0.075", "0.200", "4.4"]
    assert rows["claude-opus-4.6"] == ["0.375", "0.000", "0.375", "0.750", "16.7"]
    cached = json.loads(said("compare", "--cached", "50000", "--output", "5000", "--json"))
    (ours,) = [one for one in cached["prices"] if one["price"] == "kimi-k2.6"]
    assert (ours["cached"], ours["output"]) == (8_000_000, 20_000_000)


def test_the_books_are_proved(home: Path, said: Said) -> None:
    use(home)
    assert said("ledger", "verify").startswith("2 calls, 0 folded calls and 0 entries agree")
    assert said("ledger", "fold") == "0 calls folded into sums\n"
    with sqlite3.connect(home / "accounts.db") as connection:
        connection.execute("UPDATE account SET spent = spent + 1")
    connection.close()
    assert "api_key 2 has spent" in said("ledger", "verify", code=1)
    assert json.loads(said("ledger", "verify", "--json", code=1))["wrong"]


def test_long_lists_are_shown_to_their_end(home: Path, said: Said) -> None:
    use(home, 0)
    with Accounts.open(home, Settings(home=home)) as accounts:
        store = accounts.store
        one = """INSERT INTO entry (organisation_id, kind, cash, voucher, reference, note, actor, created_ms)
            VALUES (1, 'deposit', 1, 0, ?, '', 'test', 1)"""
        references = [(f"r{number}",) for number in range(2001)]
        store.write_now(lambda connection: connection.executemany(one, references))
        store.write_now(
            lambda connection: [record(connection, "test", "act", {"n": number}, 1) for number in range(2001)]
        )
    assert len(said("account", "entries").splitlines()) == 1 + 2001
    lines = said("ledger", "audit").splitlines()
    assert (len(lines), lines[0][-6:], lines[-1][-3:]) == (2001, "n 2000", "n 0")
    assert [line["id"] for line in json.loads(said("ledger", "audit", "--json"))] == list(range(2001, 0, -1))


def test_beside_a_server_without_a_door_only_reading(home: Path, said: Said) -> None:
    use(home)
    with HomeLock(home, "serve") as lock, Accounts.open(home, Settings(home=home)):
        lock.announce("http://127.0.0.1:1/v1")
        assert "agree" in said("ledger", "verify")
        assert "kimi" in said("usage")
        assert "--admin-port" in said("keys", "create", "x", code=3)


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "create", "x", "--budget", "-1"),
        ("keys", "create", "x", "--expires", "soon"),
        ("account", "topup", "0"),
        ("account", "topup", "much"),
        ("usage", "--since", "monday"),
        ("usage", "--csv", "--json"),
        ("compare", "--input", "many"),
        ("ledger",),
    ],
)
def test_wrong_words_get_one_line(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_money_is_exact() -> None:
    assert [money(one) for one in (None, 0, 1, 1_500_000_000, -26_000)] == [
        "-",
        "0.00",
        "0.000000001",
        "1.50",
        "-0.000026",
    ]


def test_arguments_that_no_book_can_hold_are_one_line(said: Said) -> None:
    huge = "99999999999999999999"
    for words in (
        ("keys", "disable", huge),
        ("keys", "create", "ci", "--project", huge),
        ("account", "topup", "5", "--organisation", huge),
    ):
        assert "larger than the books can hold" in said(*words, code=2)
    assert "name: is not text in UTF-8" in said("keys", "create", "caf\udce9", code=2)
    assert "reference: is not text in UTF-8" in said("account", "topup", "5", "--reference", "\udcff", code=2)
    assert "printable" in said("keys", "create", "ci\n3  admin", code=2)
    assert "printable" in said("account", "topup", "5", "--note", "\x1b[2J", code=2)


def test_a_key_for_the_last_day_there_is_can_be_listed(said: Said) -> None:
    said("keys", "create", "for ever", "--expires", "9999-12-31")
    assert "until 9999-12-31 23:59" in said("keys", "list")
