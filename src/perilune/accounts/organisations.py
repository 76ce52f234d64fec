"""Organisations and their projects: who pays, and what a group of keys may spend."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass

from perilune.accounts import audit
from perilune.accounts.tiers import Tier, TierBook
from perilune.errors import InputError, NotFound
from perilune.store import Store

LOCAL = "local"
"""Name of the organisation and project that a HOME starts with."""
LONGEST_NAME = 200


@dataclass(frozen=True)
class ProjectState:
    id: int
    name: str
    organisation_id: int
    budget: int | None
    """Nano-USD that all its keys together may spend; None is no limit."""
    spent: int
    reserved: int


@dataclass(frozen=True)
class OrganisationState:
    id: int
    name: str
    tier: str
    """The rate tier that holds for it now."""
    cash: int
    """Nano-USD deposited and not yet spent; below zero when calls came to more than was left."""
    voucher: int
    """Nano-USD granted and not yet spent; spent before cash."""
    reserved: int
    """Nano-USD that calls under way may come to."""
    deposited: int
    """Nano-USD deposited in all."""

    @property
    def available(self) -> int:
        """As the hosted API counts it: a debt in cash does not touch what was granted."""
        return self.voucher + max(self.cash, 0) - self.reserved


class Organisations:
    """The tier of each is held in memory: limits read no disk."""

    def __init__(self, store: Store, tiers: TierBook, default_tier: str, clock: Callable[[], float]) -> None:
        self._store = store
        self._tiers = tiers
        self._default_tier = default_tier
        self._clock = clock
        self._tier_of: dict[int, Tier] = {}
        self._loading = threading.Lock()
        """Without it, a slower `load` could put back what was read before a change."""

    def load(self) -> None:
        """Read the tiers again: after a deposit or a change of tier."""
        known = self._tiers.names
        with self._loading:
            rows = self._store.read(
                """SELECT o.id, o.tier, w.deposited
                FROM organisation o JOIN wallet w ON w.organisation_id = o.id"""
            )
            self._tier_of = {
                number: self._tiers.tier(name if name in known else self._default_tier, deposited)
                for number, name, deposited in rows
            }

    def tier(self, organisation_id: int) -> Tier:
        return self._tier_of[organisation_id]

    def states(self) -> list[OrganisationState]:
        rows = self._store.read(
            """SELECT o.id, o.name, w.cash, w.voucher, w.reserved, w.deposited
            FROM organisation o JOIN wallet w ON w.organisation_id = o.id ORDER BY o.id"""
        )
        return [OrganisationState(*[*row[:2], self._tier_of[row[0]].name, *row[2:]]) for row in rows]

    def state(self, organisation_id: int) -> OrganisationState:
        """Raises NotFound."""
        for state in self.states():
            if state.id == organisation_id:
                return state
        raise _no_organisation(organisation_id)

    def projects(self) -> list[ProjectState]:
        rows = self._store.read(
            """SELECT p.id, p.name, p.organisation_id, a.budget, a.spent, a.reserved
            FROM project p JOIN account a ON a.id = p.account_id ORDER BY p.id"""
        )
        return [ProjectState(*row) for row in rows]

    def create(self, name: str, *, actor: str) -> int:
        """A new organisation with one project of the name `default`; its id. Raises InputError."""
        check_name(name)

        def work(connection: sqlite3.Connection) -> int:
            taken = connection.execute("SELECT 1 FROM organisation WHERE name = ?", (name,)).fetchone()
            if taken is not None:
                raise InputError(f"there is an organisation {name!r}", field="name", mend="choose another")
            number = insert_organisation(connection, name)
            insert_project(connection, number, "default", None)
            audit.record(
                connection, actor, "account.organisation", {"organisation": number, "name": name}, self._now()
            )
            return number

        number = self._store.write_now(work)
        self.load()
        return number

    def create_project(
        self, organisation_id: int, name: str, budget: int | None = None, *, actor: str
    ) -> int:
        """A new project; its id. Raises NotFound, InputError."""
        check_name(name)

        def work(connection: sqlite3.Connection) -> int:
            _expect_organisation(connection, organisation_id)
            taken = connection.execute(
                "SELECT 1 FROM project WHERE organisation_id = ? AND name = ?", (organisation_id, name)
            ).fetchone()
            if taken is not None:
                raise InputError(f"there is a project {name!r} already", field="name", mend="choose another")
            number = insert_project(connection, organisation_id, name, budget)
            detail: audit.Detail = {
                "project": number,
                "organisation": organisation_id,
                "name": name,
                "budget": budget,
            }
            audit.record(connection, actor, "account.project", detail, self._now())
            return number

        return self._store.write_now(work)

    def set_project_budget(self, project_id: int, budget: int | None, *, actor: str) -> None:
        """The most that all keys of the project may spend, in nano-USD; None lifts it. Raises NotFound."""

        def work(connection: sqlite3.Connection) -> None:
            changed = connection.execute(
                "UPDATE account SET budget = ? WHERE id = (SELECT account_id FROM project WHERE id = ?)",
                (budget, project_id),
            )
            if changed.rowcount != 1:
                raise NotFound(
                    f"no project {project_id}", field="project", mend="`perilune account show` lists them"
                )
            audit.record(
                connection, actor, "account.budget", {"project": project_id, "budget": budget}, self._now()
            )

        self._store.write_now(work)

    def set_tier(self, organisation_id: int, tier: str | None, *, actor: str) -> None:
        """Its own tier or ladder, from the next call on; None gives it the setting's again.

        Raises NotFound, ConfigError for an unknown tier."""
        if tier is not None:
            self._tiers.check(tier)

        def work(connection: sqlite3.Connection) -> None:
            _expect_organisation(connection, organisation_id)
            connection.execute("UPDATE organisation SET tier = ? WHERE id = ?", (tier, organisation_id))
            audit.record(
                connection,
                actor,
                "account.tier",
                {"organisation": organisation_id, "tier": tier},
                self._now(),
            )

        self._store.write_now(work)
        self.load()

    def _now(self) -> int:
        return int(self._clock() * 1000)


def first_project(connection: sqlite3.Connection) -> int:
    """The local project, made at the first start; it has no budget."""
    found = connection.execute("SELECT id FROM project ORDER BY id LIMIT 1").fetchone()
    if found is not None:
        return int(found[0])
    return insert_project(connection, insert_organisation(connection, LOCAL), LOCAL, None)


def insert_organisation(connection: sqlite3.Connection, name: str) -> int:
    made = connection.execute("INSERT INTO organisation (name) VALUES (?) RETURNING id", (name,)).fetchone()
    connection.execute("INSERT INTO wallet (organisation_id) VALUES (?)", (made[0],))
    return int(made[0])


def insert_project(
    connection: sqlite3.Connection, organisation_id: int, name: str, budget: int | None
) -> int:
    account = connection.execute("INSERT INTO account (budget) VALUES (?) RETURNING id", (budget,)).fetchone()
    made = connection.execute(
        "INSERT INTO project (organisation_id, account_id, name) VALUES (?, ?, ?) RETURNING id",
        (organisation_id, account[0], name),
    )
    return int(made.fetchone()[0])


def _expect_organisation(connection: sqlite3.Connection, number: int) -> None:
    if connection.execute("SELECT 1 FROM organisation WHERE id = ?", (number,)).fetchone() is None:
        raise _no_organisation(number)


def _no_organisation(number: int) -> NotFound:
    return NotFound(
        f"no organisation {number}", field="organisation", mend="`perilune account show` lists them"
    )


def check_name(name: str) -> None:
    """Raises InputError for the name of a key, project or organisation that would not stand in a table."""
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise InputError(
            f"must have 1 to {LONGEST_NAME} printable characters", field="name", mend="choose another"
        )
