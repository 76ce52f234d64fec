"""The ledger: one row per model call, written before the call and settled before its last byte leaves.

    open      reserve the most the call can cost in its key's and its project's account, or refuse
    settle    replace the reservation by the charge; a second settle changes nothing
    orphan    an open row found at start: its process died; it is settled by what is known of it

A row and the two accounts it moves change in one transaction, so they cannot disagree; `verify` proves it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Literal

from perilune.accounts.keys import Principal
from perilune.accounts.prices import Buckets, Price, upper_bound
from perilune.errors import ConfigError, InputError, InsufficientBalance, LimitReached, StoreError
from perilune.store import Store

Outcome = Literal["finished", "aborted", "failed", "orphaned"]
"""`finished`: the whole answer; `aborted`: the caller left; `failed`: the model's side broke;
`orphaned`: this process died during the call."""

IN_BOTH_ACCOUNTS = """id IN (
    SELECT account_id FROM api_key WHERE id = ? UNION ALL SELECT account_id FROM project WHERE id = ?)"""
IN_BUDGET = "(budget IS NULL OR spent + reserved + ? <= budget)"

ROWS = """SELECT r.id, r.model, p.name, r.outcome, r.estimated, r.charge, r.reserved,
    r.uncached, r.cached, r.output, r.reasoning, r.opened_ms, r.settled_ms, r.key_id, r.project_id
    FROM request r JOIN price_version p ON p.id = r.price_id"""


@dataclass(frozen=True)
class Reservation:
    """An open row."""

    request_id: str
    principal: Principal
    price: Price
    amount: int
    """Nano-USD set aside."""


@dataclass(frozen=True)
class Charge:
    """What a settled call came to."""

    request_id: str
    nano_usd: int
    price_version: str
    outcome: Outcome
    buckets: Buckets
    estimated: bool
    """The endpoint did not tell the usage: it was counted from what arrived."""


@dataclass(frozen=True)
class UsageRow:
    """One row of the ledger as reports read it. While `outcome` is `open`, `uncached` is the guess of the
    prompt and `charge` is 0."""

    request_id: str
    model: str
    price_version: str
    outcome: str
    estimated: bool
    charge: int
    reserved: int
    uncached: int
    cached: int
    output: int
    reasoning: int
    opened_ms: int
    settled_ms: int | None
    key_id: int
    project_id: int


class Ledger:
    """The money side of one accounts.db. One process owns it (see `store.HomeLock`)."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    async def reserve(
        self,
        principal: Principal,
        *,
        request_id: str,
        model: str,
        price: Price,
        prompt_bound: int,
        prompt_estimate: int,
        max_tokens: int,
    ) -> Reservation:
        """Open a row for a call that sends at most `prompt_bound` and receives at most `max_tokens` tokens.
        On disk when this returns.

        Raises LimitReached (key budget), InsufficientBalance (project budget), InputError for a request
        id that was used before. Then nothing is reserved, nor when the wait is cancelled."""
        amount = upper_bound(price, prompt_bound, max_tokens)
        now = self._now()

        def work(connection: sqlite3.Connection) -> None:
            if connection.execute("SELECT 1 FROM request WHERE id = ?", (request_id,)).fetchone():
                raise InputError(
                    f"{request_id} was used before", field="request_id", mend="every call needs its own"
                )
            _take(connection, principal, amount)
            connection.execute(
                """INSERT INTO request
                    (id, key_id, project_id, price_id, model, reserved, uncached, opened_ms)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
                (
                    request_id,
                    principal.key_id,
                    principal.project_id,
                    _price_row(connection, price),
                    model,
                    amount,
                    prompt_estimate,
                    now,
                ),
            )

        try:
            await self._store.write(work)
        except asyncio.CancelledError:
            # The row may be on its way; writes run in order, so this one comes after it.
            await self._store.write(lambda connection: _abandon(connection, request_id, now))
            raise
        return Reservation(request_id, principal, price, amount)

    async def settle(
        self,
        reservation: Reservation,
        buckets: Buckets,
        *,
        reasoning: int = 0,
        outcome: Outcome = "finished",
        estimated: bool = False,
    ) -> Charge:
        """Close the row. On disk when this returns; cancelling the wait does not undo it. The first settle
        of a request wins, later ones return its charge."""
        now = self._now()
        request_id = reservation.request_id
        return await self._store.write(
            lambda connection: _settle(connection, request_id, buckets, reasoning, outcome, estimated, now)
        )

    def close_orphans(self) -> int:
        """Settle the rows that a dead process left open; how many. Call it before any new `reserve`.

        The prompt, as it was guessed, is billed as fresh input, for the endpoint most likely read it; what
        came back is unknown and not billed. The row says that it is an estimate."""
        now = self._now()

        def work(connection: sqlite3.Connection) -> int:
            rows = connection.execute("SELECT id, uncached FROM request WHERE outcome = 'open'").fetchall()
            for request_id, prompt in rows:
                _settle(connection, request_id, Buckets(uncached=prompt), 0, "orphaned", True, now)
            return len(rows)

        return self._store.write_now(work)

    def row(self, request_id: str) -> UsageRow | None:
        rows = self._store.read(f"{ROWS} WHERE r.id = ?", (request_id,))
        return _usage_row(rows[0]) if rows else None

    def rows(self, project_id: int | None = None, *, before: str = "~", limit: int = 100) -> list[UsageRow]:
        """Newest first; page on with the last id as `before`."""
        where, params = "r.id < ?", [before]
        if project_id is not None:
            found = self._store.read(
                f"{ROWS} WHERE {where} AND r.project_id = ? ORDER BY r.id DESC LIMIT ?",
                (*params, project_id, limit),
            )
        else:
            found = self._store.read(f"{ROWS} WHERE {where} ORDER BY r.id DESC LIMIT ?", (*params, limit))
        return [_usage_row(row) for row in found]

    def verify(self) -> tuple[str, ...]:
        """Every disagreement between rows, prices and accounts, in words; none when the books are right."""
        return (*self._wrong_charges(), *self._wrong_accounts())

    def _wrong_charges(self) -> list[str]:
        rows = self._store.read(
            """SELECT r.id, r.charge, r.uncached, r.cached, r.output,
                p.name, p.input, p.cached_input, p.output
            FROM request r JOIN price_version p ON p.id = r.price_id WHERE r.outcome <> 'open'"""
        )
        wrong = []
        for request_id, charge, uncached, cached, output, name, *rates in rows:
            due = Price(name, date.min, *rates).charge(Buckets(uncached, cached, output))
            if due != charge:
                wrong.append(f"request {request_id} is charged {charge}, its tokens cost {due}")
        return wrong

    def _wrong_accounts(self) -> list[str]:
        wrong = []
        for owner, column in (("api_key", "key_id"), ("project", "project_id")):
            rows = self._store.read(
                f"""SELECT o.id, a.spent, a.reserved,
                    COALESCE(SUM(CASE WHEN r.outcome <> 'open' THEN r.charge ELSE 0 END), 0),
                    COALESCE(SUM(CASE WHEN r.outcome = 'open' THEN r.reserved ELSE 0 END), 0)
                FROM {owner} o JOIN account a ON a.id = o.account_id
                LEFT JOIN request r ON r.{column} = o.id
                GROUP BY o.id, a.spent, a.reserved"""
            )
            for number, spent, reserved, charged, opened in rows:
                if (spent, reserved) != (charged, opened):
                    wrong.append(
                        f"{owner} {number} has spent {spent} and reserved {reserved}, "
                        f"its requests say {charged} and {opened}"
                    )
        return wrong

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _take(connection: sqlite3.Connection, principal: Principal, amount: int) -> None:
    """Reserve in the key's account, then in the project's. A refusal undoes both with this write."""
    for owner, number in (("api_key", principal.key_id), ("project", principal.project_id)):
        taken = connection.execute(
            f"""UPDATE account SET reserved = reserved + ?
            WHERE id = (SELECT account_id FROM {owner} WHERE id = ?) AND {IN_BUDGET}""",
            (amount, number, amount),
        )
        if taken.rowcount == 1:
            continue
        spent, budget = connection.execute(
            f"SELECT spent, budget FROM account WHERE id = (SELECT account_id FROM {owner} WHERE id = ?)",
            (number,),
        ).fetchone()
        passing = spent + amount <= budget
        held = " while others are under way" if passing else ""
        if owner == "api_key":
            raise LimitReached(
                f"the budget of the key {principal.key_name} does not cover this call{held}",
                passing=passing,
                mend="raise the key's budget, or ask for fewer tokens",
            )
        raise InsufficientBalance(
            f"the project's budget does not cover this call{held}",
            passing=passing,
            mend="raise the project's budget, or ask for fewer tokens",
        )


def _settle(
    connection: sqlite3.Connection,
    request_id: str,
    buckets: Buckets,
    reasoning: int,
    outcome: Outcome,
    estimated: bool,
    now: int,
) -> Charge:
    row = connection.execute(
        """SELECT r.outcome, r.reserved, r.key_id, r.project_id, p.name, p.input, p.cached_input, p.output,
            r.charge, r.uncached, r.cached, r.output, r.estimated
        FROM request r JOIN price_version p ON p.id = r.price_id WHERE r.id = ?""",
        (request_id,),
    ).fetchone()
    if row is None:
        raise StoreError(f"request {request_id} was never opened", mend="reserve before you settle")
    was, reserved, key_id, project_id, name, *rates = row[:8]
    if was != "open":
        return Charge(request_id, row[8], name, was, Buckets(*row[9:12]), bool(row[12]))
    charge = Price(name, date.min, *rates).charge(buckets)
    connection.execute(
        """UPDATE request SET outcome = ?, estimated = ?, charge = ?, uncached = ?, cached = ?, output = ?,
            reasoning = ?, settled_ms = ? WHERE id = ?""",
        (
            outcome,
            int(estimated),
            charge,
            buckets.uncached,
            buckets.cached,
            buckets.output,
            reasoning,
            now,
            request_id,
        ),
    )
    connection.execute(
        f"UPDATE account SET spent = spent + ?, reserved = reserved - ? WHERE {IN_BOTH_ACCOUNTS}",
        (charge, reserved, key_id, project_id),
    )
    return Charge(request_id, charge, name, outcome, buckets, estimated)


def _abandon(connection: sqlite3.Connection, request_id: str, now: int) -> None:
    """Settle a call that was never made, if its row was opened at all."""
    if connection.execute("SELECT 1 FROM request WHERE id = ?", (request_id,)).fetchone():
        _settle(connection, request_id, Buckets(), 0, "aborted", False, now)


def _price_row(connection: sqlite3.Connection, price: Price) -> int:
    """The row of this price version, made at its first use.

    Raises ConfigError when the book's version differs from what was billed under its name before."""
    rates = (price.input, price.cached_input, price.output)
    found = connection.execute(
        "SELECT id, input, cached_input, output FROM price_version WHERE name = ?", (price.version,)
    ).fetchone()
    if found is None:
        made = connection.execute(
            "INSERT INTO price_version (name, input, cached_input, output) VALUES (?, ?, ?, ?) RETURNING id",
            (price.version, *rates),
        ).fetchone()
        return int(made[0])
    if tuple(found[1:]) != rates:
        raise ConfigError(
            f"{price.version} was billed at other rates before",
            field="price_book",
            mend="prices are never edited: add an entry with a later `from`",
        )
    return int(found[0])


def _usage_row(row: tuple[object, ...]) -> UsageRow:
    values = list(row)
    values[4] = bool(values[4])
    return UsageRow(*values)  # type: ignore[arg-type]  # the columns of ROWS are its fields
