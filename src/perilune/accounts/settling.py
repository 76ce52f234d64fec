"""Replacing a reservation by the charge, on the writer thread: in the row, in two accounts, in the wallet."""

from __future__ import annotations

import sqlite3
from datetime import date
from typing import NamedTuple

from perilune.accounts.holding import Pots
from perilune.accounts.prices import Buckets, Price
from perilune.accounts.rows import Charge, Outcome, Reservation
from perilune.errors import StoreError

CLOSE = """UPDATE request SET outcome = ?, estimated = ?, charge = ?, uncached = ?, cached = ?, output = ?,
    searches = ?, reasoning = ?, settled_ms = ?, from_voucher = COALESCE(
        (SELECT CASE WHEN voucher < ? THEN voucher ELSE ? END FROM wallet WHERE organisation_id = ?), 0)
    WHERE id = ? AND outcome = 'open'"""
PAY = """UPDATE wallet SET
    cash = cash - CASE WHEN voucher < ? THEN ? - voucher ELSE 0 END,
    voucher = voucher - CASE WHEN voucher < ? THEN voucher ELSE ? END,
    reserved = reserved - ? WHERE organisation_id = ?"""
SPEND = "UPDATE account SET spent = spent + ?, reserved = reserved - ? WHERE id = ?"
FOUND = """SELECT r.outcome, r.reserved, r.prepaid, k.account_id, p.account_id, p.organisation_id,
        v.name, v.input, v.cached_input, v.output, v.search,
        r.charge, r.uncached, r.cached, r.output, r.searches, r.estimated
    FROM request r JOIN price_version v ON v.id = r.price_id
    JOIN api_key k ON k.id = r.key_id JOIN project p ON p.id = r.project_id WHERE r.id = ?"""


class Held(NamedTuple):
    """What settling an open row needs to know of it."""

    request_id: str
    amount: int
    prepaid: bool
    pots: Pots
    organisation_id: int
    price: Price
    version: str

    @classmethod
    def by(cls, made: Reservation, pots: Pots) -> Held:
        organisation, price = made.principal.organisation_id, made.price
        return cls(made.request_id, made.amount, made.prepaid, pots, organisation, price, price.version)


class Ending(NamedTuple):
    """How a call ended."""

    buckets: Buckets
    reasoning: int
    outcome: Outcome
    estimated: bool
    at_ms: int


def close(connection: sqlite3.Connection, held: Held, ending: Ending) -> Charge | None:
    """Charge the call, or None when its row is not open. Granted credit is spent before cash."""
    buckets = ending.buckets
    charge, payer = held.price.charge(buckets), held.organisation_id
    counts = (buckets.uncached, buckets.cached, buckets.output, buckets.searches, ending.reasoning)
    how = (ending.outcome, int(ending.estimated), charge, *counts, ending.at_ms)
    # Only what was reserved in a wallet is paid from it: nobody has the number 0.
    wallet = (charge, charge, payer if held.prepaid else 0)
    if connection.execute(CLOSE, (*how, *wallet, held.request_id)).rowcount != 1:
        return None
    if held.prepaid:
        connection.execute(PAY, (*[charge] * 4, held.amount, payer))
    connection.executemany(SPEND, [(charge, held.amount, pot) for pot in held.pots])
    return Charge(held.request_id, charge, held.version, ending.outcome, buckets, ending.estimated)


def close_found(connection: sqlite3.Connection, request_id: str, ending: Ending) -> Charge:
    """The same for a row of which only the id is known. One that is not open keeps the charge it has.
    Raises StoreError when there is none."""
    row = connection.execute(FOUND, (request_id,)).fetchone()
    if row is None:
        raise StoreError(f"request {request_id} was never opened", mend="reserve before you settle")
    outcome, amount, prepaid, key, project, organisation, version, *rates = row[:11]
    price = Price(version, date.min, *rates)
    held = Held(request_id, amount, bool(prepaid), Pots(key, project), organisation, price, version)
    return close(connection, held, ending) or Charge(
        request_id, row[11], version, outcome, Buckets(*row[12:16]), bool(row[16])
    )


def close_abandoned(connection: sqlite3.Connection, request_id: str, now: int) -> None:
    """Close a call that was never made, if its row was opened at all."""
    if connection.execute("SELECT 1 FROM request WHERE id = ?", (request_id,)).fetchone():
        close_found(connection, request_id, Ending(Buckets(), 0, "aborted", False, now))


def close_orphans(connection: sqlite3.Connection, now: int) -> int:
    """Close what a dead process left open; how many rows."""
    rows = connection.execute("SELECT id, uncached FROM request WHERE settled_ms IS NULL").fetchall()
    for request_id, prompt in rows:
        close_found(connection, request_id, Ending(Buckets(uncached=prompt), 0, "orphaned", True, now))
    return len(rows)
