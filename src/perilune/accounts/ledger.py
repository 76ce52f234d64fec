"""The ledger: one row per model call and per web search, written before it is made and settled before its
last byte leaves.

    open      reserve the most the call can cost in its key's and its project's account, or refuse
    settle    replace the reservation by the charge; a second settle changes nothing
    orphan    an open row found at start: its process died; it is settled by what is known of it

A row and what it moves, the two accounts and with `prepaid` the organisation's wallet, change in one
transaction, so they cannot disagree; `accounts/books.py` proves it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Literal, NamedTuple

from perilune.accounts.keys import Principal
from perilune.accounts.prices import TOKENS_PER_RATE, Buckets, Price, upper_bound
from perilune.accounts.wallet import AVAILABLE, Prepaid
from perilune.errors import ConfigError, InputError, InsufficientBalance, LimitReached, StoreError
from perilune.store import Store

SEARCH_MODEL = "$web_search"
"""What stands in the place of a model's name in the row of a search."""

Outcome = Literal["finished", "aborted", "failed", "orphaned"]
"""`finished`: the whole answer; `aborted`: the caller left; `failed`: the model's side broke;
`orphaned`: this process died during the call."""

IN_BOTH_ACCOUNTS = """id IN (
    SELECT account_id FROM api_key WHERE id = ? UNION ALL SELECT account_id FROM project WHERE id = ?)"""
TAKE = """UPDATE account SET reserved = reserved + ?
    WHERE id IN (?, ?) AND (budget IS NULL OR spent + reserved + ? <= budget) RETURNING id"""
SPEND = "UPDATE account SET spent = spent + ?, reserved = reserved - ? WHERE id IN (?, ?)"
PRICE = """SELECT id FROM price_version
    WHERE name = ? AND input = ? AND cached_input = ? AND output = ? AND search = ?"""
OPEN = f"""INSERT INTO request
        (id, key_id, project_id, price_id, model, reserved, uncached, opened_ms, prepaid)
    VALUES (?, ?, ?, ({PRICE}), ?, ?, ?, ?, ?)"""
CLOSE = """UPDATE request SET outcome = ?, estimated = ?, charge = ?, uncached = ?, cached = ?, output = ?,
    searches = ?, reasoning = ?, from_voucher = ?, settled_ms = ? WHERE id = ? AND outcome = 'open'"""
PAY = """UPDATE wallet SET voucher = voucher - ?, cash = cash - ?, reserved = reserved - ?
    WHERE organisation_id = ?"""

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
    max_tokens: int
    """Most tokens of the answer that it covers."""
    prepaid: bool = False
    """The amount is set aside in the organisation's wallet too."""


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


class Pots(NamedTuple):
    """The accounts of a key and of its project."""

    key: int
    project: int


class Ledger:
    """The money side of one accounts.db. One process owns it (see `store.HomeLock`)."""

    def __init__(
        self, store: Store, clock: Callable[[], float] = time.time, prepaid: Prepaid | None = None
    ) -> None:
        """With `prepaid`, calls are paid from the wallets of organisations; those that are under way when
        this changes are settled as they were reserved."""
        self._store = store
        self._clock = clock
        self._prepaid = prepaid
        self._pots: dict[int, Pots] = {}

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
        least_tokens: int | None = None,
    ) -> Reservation:
        """Open a row for a call that sends at most `prompt_bound` and receives at most `max_tokens` tokens.
        With `least_tokens` the answer may be cut, down to so many, to what budgets and balance still cover.
        On disk when this returns.

        Raises LimitReached (key budget), InsufficientBalance (project budget, balance), InputError for a
        request id that was used before. Then nothing is reserved, nor when the wait is cancelled."""
        now = self._now()
        prepaid = self._prepaid

        def work(connection: sqlite3.Connection) -> Reservation:
            tokens = max_tokens
            if least_tokens is not None and least_tokens < max_tokens:
                room = _room(connection, principal, prepaid is not None)
                tokens = _affordable(price, prompt_bound, least_tokens, max_tokens, room)
            amount = upper_bound(price, prompt_bound, tokens)
            made = Reservation(request_id, principal, price, amount, tokens, prepaid is not None)
            self._hold(connection, made, model, prompt_estimate, now)
            return made

        try:
            return await self._store.write(work)
        except asyncio.CancelledError:
            # The row may be on its way; writes run in order, so this one comes after it.
            await self._store.write(lambda connection: _abandon(connection, request_id, now))
            raise

    async def reserve_search(self, principal: Principal, *, request_id: str, price: Price) -> Reservation:
        """Open a row for one web search; `settle` with one of `searches` charges it, `release` takes it back.

        Raises what `reserve` raises."""
        now = self._now()
        made = Reservation(request_id, principal, price, price.search, 0, self._prepaid is not None)
        try:
            await self._store.write(lambda connection: self._hold(connection, made, SEARCH_MODEL, 0, now))
        except asyncio.CancelledError:
            await self.release(made)
            raise
        return made

    async def release(self, reservation: Reservation) -> None:
        """Take the row of a search that was not made out again. Does nothing to one that is settled."""
        now = self._now()

        def work(connection: sqlite3.Connection) -> None:
            pots = self._pots_of(connection, reservation.principal)
            if _settle_open(connection, reservation, pots, Buckets(), 0, "aborted", False, now):
                connection.execute("DELETE FROM request WHERE id = ?", (reservation.request_id,))

        await self._store.write(work)

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

        def work(connection: sqlite3.Connection) -> Charge:
            pots = self._pots_of(connection, reservation.principal)
            return _settle_open(
                connection, reservation, pots, buckets, reasoning, outcome, estimated, now
            ) or _settle(connection, reservation.request_id, buckets, reasoning, outcome, estimated, now)

        return await self._store.write(work)

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
        if project_id is not None:
            found = self._store.read(
                f"{ROWS} WHERE r.id < ? AND r.project_id = ? ORDER BY r.id DESC LIMIT ?",
                (before, project_id, limit),
            )
        else:
            found = self._store.read(f"{ROWS} WHERE r.id < ? ORDER BY r.id DESC LIMIT ?", (before, limit))
        return [_usage_row(row) for row in found]

    def _hold(
        self, connection: sqlite3.Connection, made: Reservation, model: str, prompt_estimate: int, now: int
    ) -> None:
        """Reserve everywhere and write the row, or raise; then nothing of it stays."""
        principal = made.principal
        _take(connection, principal, self._pots_of(connection, principal), made.amount)
        if self._prepaid is not None and made.prepaid:
            _take_prepaid(connection, principal, made.amount, self._prepaid)
        _open(connection, made, model, prompt_estimate, now)

    def _pots_of(self, connection: sqlite3.Connection, principal: Principal) -> Pots:
        """A key's accounts never change, so they are looked up once. On the writer thread."""
        pots = self._pots.get(principal.key_id)
        if pots is None:
            found = connection.execute(
                """SELECT k.account_id, p.account_id FROM api_key k JOIN project p ON p.id = k.project_id
                WHERE k.id = ?""",
                (principal.key_id,),
            ).fetchone()
            pots = self._pots[principal.key_id] = Pots(*found)
        return pots

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _take(connection: sqlite3.Connection, principal: Principal, pots: Pots, amount: int) -> None:
    """Reserve in both accounts. A refusal undoes the whole write."""
    taken = connection.execute(TAKE, (amount, *pots, amount)).fetchall()
    if len(taken) == 2:
        return
    for owner, pot in (("api_key", pots.key), ("project", pots.project)):
        if (pot,) in taken:
            continue
        spent, budget = connection.execute(
            "SELECT spent, budget FROM account WHERE id = ?", (pot,)
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


def _room(connection: sqlite3.Connection, principal: Principal, prepaid: bool) -> int | None:
    """Nano-USD that the budgets and the balance still cover; None is no limit."""
    rows = connection.execute(
        f"SELECT budget - spent - reserved FROM account WHERE budget IS NOT NULL AND {IN_BOTH_ACCOUNTS}",
        (principal.key_id, principal.project_id),
    ).fetchall()
    if prepaid:
        rows += connection.execute(
            f"SELECT {AVAILABLE} FROM wallet WHERE organisation_id = ?", (principal.organisation_id,)
        ).fetchall()
    return min((int(row[0]) for row in rows), default=None)


def _affordable(price: Price, prompt_bound: int, least: int, most: int, room: int | None) -> int:
    """As many answer tokens as `room` covers, within the two bounds."""
    if room is None or price.output == 0:
        return most
    left = room * TOKENS_PER_RATE - prompt_bound * max(price.input, price.cached_input)
    return max(least, min(most, left // price.output))


def _take_prepaid(
    connection: sqlite3.Connection, principal: Principal, amount: int, prepaid: Prepaid
) -> None:
    """Reserve in the organisation's wallet. A refusal undoes the whole write."""
    taken = connection.execute(
        f"""UPDATE wallet SET reserved = reserved + ?
        WHERE organisation_id = ? AND deposited >= ? AND (? = 0 OR {AVAILABLE} >= ?)""",
        (amount, principal.organisation_id, prepaid.activation, amount, amount),
    )
    if taken.rowcount == 1:
        return
    deposited, available, reserved = connection.execute(
        f"SELECT deposited, {AVAILABLE}, reserved FROM wallet WHERE organisation_id = ?",
        (principal.organisation_id,),
    ).fetchone()
    if deposited < prepaid.activation:
        raise InsufficientBalance(
            f"Your account {principal.label} is suspended, please check your plan and billing details",
            mend=f"it is active once ${prepaid.activation / 1e9:.2f} have been deposited",
        )
    raise InsufficientBalance(
        f"You exceeded your current token quota: <org-{principal.organisation_id}> {available / 1e9:.5f}, "
        "please check your account balance",
        passing=available + reserved >= amount,
        mend="top up, or ask for fewer tokens",
    )


def _open(
    connection: sqlite3.Connection, made: Reservation, model: str, prompt_estimate: int, now: int
) -> None:
    """Raises InputError for a request id that was used before."""
    price, principal = made.price, made.principal
    rates = (price.version, price.input, price.cached_input, price.output, price.search)
    row = (
        *(made.request_id, principal.key_id, principal.project_id),
        *rates,
        *(model, made.amount, prompt_estimate, now, int(made.prepaid)),
    )
    try:
        connection.execute(OPEN, row)
    except sqlite3.IntegrityError:
        if connection.execute("SELECT 1 FROM request WHERE id = ?", (made.request_id,)).fetchone():
            raise InputError(
                f"{made.request_id} was used before", field="request_id", mend="every call needs its own"
            ) from None
        _add_price(connection, price)
        connection.execute(OPEN, row)


def _settle_open(
    connection: sqlite3.Connection,
    reservation: Reservation,
    pots: Pots,
    buckets: Buckets,
    reasoning: int,
    outcome: Outcome,
    estimated: bool,
    now: int,
) -> Charge | None:
    """Close a row of which all is known that its settling needs; None when it is not open."""
    charge = reservation.price.charge(buckets)
    organisation, granted = reservation.principal.organisation_id, 0
    if reservation.prepaid:
        voucher = connection.execute("SELECT voucher FROM wallet WHERE organisation_id = ?", (organisation,))
        granted = min(int(voucher.fetchone()[0]), charge)
    counts = (buckets.uncached, buckets.cached, buckets.output, buckets.searches, reasoning)
    row = (outcome, int(estimated), charge, *counts, granted, now, reservation.request_id)
    if connection.execute(CLOSE, row).rowcount != 1:
        return None
    if reservation.prepaid:
        connection.execute(PAY, (granted, charge - granted, reservation.amount, organisation))
    connection.execute(SPEND, (charge, reservation.amount, *pots))
    return Charge(reservation.request_id, charge, reservation.price.version, outcome, buckets, estimated)


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
        """SELECT r.outcome, r.reserved, r.key_id, r.project_id, r.prepaid,
            p.name, p.input, p.cached_input, p.output, p.search,
            r.charge, r.uncached, r.cached, r.output, r.searches, r.estimated
        FROM request r JOIN price_version p ON p.id = r.price_id WHERE r.id = ?""",
        (request_id,),
    ).fetchone()
    if row is None:
        raise StoreError(f"request {request_id} was never opened", mend="reserve before you settle")
    was, reserved, key_id, project_id, prepaid, name, *rates = row[:10]
    if was != "open":
        return Charge(request_id, row[10], name, was, Buckets(*row[11:15]), bool(row[15]))
    charge = Price(name, date.min, *rates).charge(buckets)
    granted = _pay(connection, project_id, charge, reserved) if prepaid else 0
    counts = (buckets.uncached, buckets.cached, buckets.output, buckets.searches, reasoning)
    connection.execute(CLOSE, (outcome, int(estimated), charge, *counts, granted, now, request_id))
    connection.execute(
        f"UPDATE account SET spent = spent + ?, reserved = reserved - ? WHERE {IN_BOTH_ACCOUNTS}",
        (charge, reserved, key_id, project_id),
    )
    return Charge(request_id, charge, name, outcome, buckets, estimated)


def _pay(connection: sqlite3.Connection, project_id: int, charge: int, reserved: int) -> int:
    """Take a charge from the wallet: first what was granted, then cash. How much was granted credit."""
    organisation_id, voucher = connection.execute(
        """SELECT w.organisation_id, w.voucher FROM wallet w
        JOIN project p ON p.organisation_id = w.organisation_id WHERE p.id = ?""",
        (project_id,),
    ).fetchone()
    granted = min(int(voucher), charge)
    connection.execute(PAY, (granted, charge - granted, reserved, organisation_id))
    return granted


def _abandon(connection: sqlite3.Connection, request_id: str, now: int) -> None:
    """Settle a call that was never made, if its row was opened at all."""
    if connection.execute("SELECT 1 FROM request WHERE id = ?", (request_id,)).fetchone():
        _settle(connection, request_id, Buckets(), 0, "aborted", False, now)


def _add_price(connection: sqlite3.Connection, price: Price) -> None:
    """Enter a price version at its first use.

    Raises ConfigError when the book's version differs from what was billed under its name before."""
    if connection.execute("SELECT 1 FROM price_version WHERE name = ?", (price.version,)).fetchone():
        raise ConfigError(
            f"{price.version} was billed at other rates before",
            field="price_book",
            mend="prices are never edited: add an entry with a later `from`",
        )
    connection.execute(
        "INSERT INTO price_version (name, input, cached_input, output, search) VALUES (?, ?, ?, ?, ?)",
        (price.version, price.input, price.cached_input, price.output, price.search),
    )


def _usage_row(row: tuple[object, ...]) -> UsageRow:
    values = list(row)
    values[4] = bool(values[4])
    return UsageRow(*values)  # type: ignore[arg-type]  # the columns of ROWS are its fields
