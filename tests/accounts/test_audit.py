"""The audit: a line for every act of an operator, and a chain that shows what was done to it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from perilune.accounts import audit
from perilune.accounts.accounts import Accounts
from perilune.accounts.tables import SCHEMA
from perilune.errors import HomeLocked, NotFound, StoreError
from perilune.settings import Settings
from perilune.store import Store


def acted(home: Path) -> Accounts:
    accounts = Accounts.open(home, Settings(home=home))
    secret = accounts.create_key("ci", budget=5, actor="key 1 (boss)")
    accounts.set_key_budget(3, None)
    accounts.wallets.enter(1, "deposit", 7, "r", actor="me")
    accounts.wallets.enter(1, "deposit", 7, "r", actor="me")  # changes nothing, so it is no act
    accounts.organisations.create("other", actor="me")
    accounts.organisations.set_tier(2, "kimi", actor="me")
    accounts.organisations.set_project_budget(2, 9, actor="me")
    accounts.organisations.create_project(2, "p", actor="me")
    accounts.disable_key(3)
    assert all(secret not in json.dumps(line.detail) for line in audit.lines(accounts.store))
    return accounts


def test_every_act_leaves_a_line(tmp_path: Path) -> None:
    with acted(tmp_path) as accounts:
        lines = audit.lines(accounts.store)
        assert [(line.actor, line.act) for line in reversed(lines)] == [
            ("key 1 (boss)", "keys.create"),
            ("command line", "keys.budget"),
            ("me", "account.deposit"),
            ("me", "account.organisation"),
            ("me", "account.tier"),
            ("me", "account.budget"),
            ("me", "account.project"),
            ("command line", "keys.disable"),
        ]
        assert lines[-1].detail["name"] == "ci" and lines[-1].detail["budget"] == 5
        assert [line.id for line in audit.lines(accounts.store, before=3)] == [2, 1]
        assert accounts.verify() == ()


def test_an_act_that_fails_leaves_none(tmp_path: Path) -> None:
    with Accounts.open(tmp_path, Settings(home=tmp_path)) as accounts:
        for act in (
            lambda: accounts.disable_key(99),
            lambda: accounts.create_key("x", project_id=99),
            lambda: accounts.organisations.set_tier(99, "kimi", actor="me"),
            lambda: accounts.organisations.set_project_budget(99, 1, actor="me"),
        ):
            with pytest.raises(NotFound):
                act()
        assert audit.lines(accounts.store) == []


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE audit SET actor = 'nobody' WHERE id = 2",
        "UPDATE audit SET at_ms = at_ms + 1 WHERE id = 2",
        "UPDATE audit SET act = 'keys.list' WHERE id = 2",
        "UPDATE audit SET detail = '{}' WHERE id = 3",
        "DELETE FROM audit WHERE id = 4",
        "DELETE FROM audit WHERE id = 1",
        "UPDATE audit SET id = 100 WHERE id = 8",
        "UPDATE audit SET digest = 'x' WHERE id = 8",
    ],
)
def test_a_changed_line_breaks_the_chain(tmp_path: Path, damage: str) -> None:
    with acted(tmp_path) as accounts:
        with sqlite3.connect(tmp_path / "accounts.db") as connection:
            connection.execute(damage)
        connection.close()
        assert any("the audit's line" in line for line in accounts.verify())


@pytest.mark.parametrize(
    ("missing", "words"), [(1, "older version, and that still owns it.*stop it"), (-1, "newer version")]
)
def test_beside_an_owner_of_another_version_one_clear_line(tmp_path: Path, missing: int, words: str) -> None:
    Store(
        tmp_path / "accounts.db", (*SCHEMA, "CREATE TABLE later (id INTEGER)")[: len(SCHEMA) - missing]
    ).close()
    with pytest.raises(StoreError, match=words):
        Accounts.peek(tmp_path, Settings(home=tmp_path))


def test_beside_a_running_owner_only_reading(tmp_path: Path) -> None:
    with acted(tmp_path), Accounts.peek(tmp_path, Settings(home=tmp_path)) as beside:
        assert beside.verify() == ()
        assert len(beside.keyring.states()) == 3
        with pytest.raises(HomeLocked, match="--admin-port"):
            beside.create_key("x")
