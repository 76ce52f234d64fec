"""How a call ends: the entry that charges it, and what is done about rows that nobody ended."""

from __future__ import annotations

import sqlite3
from datetime import date

import msgspec

from perilune.accounts.entries import Opened, Payers, Settled
from perilune.accounts.posting import post
from perilune.accounts.prices import Buckets, Price
from perilune.accounts.rows import Charge, Outcome, Reservation
from perilune.errors import StoreError
from perilune.store import Store

ORPHANS = """SELECT r.id, r.reserved, r.uncached, r.prepaid, k.account_id, p.account_id, p.organisation_id,
        v.name, v.input, v.cached_input, v.output, v.search
    FROM request r JOIN price_version v ON v.id = r.price_id
    JOIN api_key k ON k.id = r.key_id JOIN project p ON p.id = r.project_id WHERE r.settled_ms IS NULL"""
FOUND = """SELECT r.charge, v.name, r.outcome, r.uncached, r.cached, r.output, r.searches, r.estimated
    FROM request r JOIN price_version v ON v.id = r.price_id WHERE r.id = ?"""


class Ending(msgspec.Struct, frozen=True):
    """How a call ended."""

    buckets: Buckets
    reasoning: int
    outcome: Outcome
    estimated: bool
    at_ms: int


def settled(
    request_id: str, amount: int, payers: Payers, price: Price, ending: Ending, voucher: int
) -> Settled:
    """The entry that ends a call for which `amount` was set aside. Granted credit, of which there is
    `voucher`, is spent before cash."""
    buckets = ending.buckets
    charge = price.charge(buckets)
    return Settled(
        request_id,
        ending.outcome,
        ending.estimated,
        charge,
        max(0, min(charge, voucher)) if payers.wallet else 0,
        buckets.uncached,
        buckets.cached,
        buckets.output,
        buckets.searches,
        ending.reasoning,
        ending.at_ms,
        amount,
        payers,
    )


def charge_of(entry: Settled, version: str) -> Charge:
    buckets = Buckets(entry.uncached, entry.cached, entry.output, entry.searches)
    return Charge(entry.request_id, entry.charge, version, entry.outcome, buckets, entry.estimated)


def find_charge(store: Store, made: Reservation) -> Charge | None:
    """What the call was charged, also where that is not posted yet; None while it is open.

    Raises StoreError when it was never opened."""
    is_open = False
    for _, entry in store.waiting():  # first: what is posted meanwhile is found in the tables
        if entry.request_id == made.request_id:
            if isinstance(entry, Settled):
                return charge_of(entry, made.price.version)
            is_open = isinstance(entry, Opened)
    rows = store.read_posted(FOUND, (made.request_id,))
    if is_open or (rows and rows[0][2] == "open"):
        return None
    if not rows:
        raise StoreError(f"request {made.request_id} was never opened", mend="reserve before you settle")
    charge, version, outcome, *counts, estimated = rows[0]
    return Charge(made.request_id, charge, version, outcome, Buckets(*counts), bool(estimated))


def close_orphans(connection: sqlite3.Connection, now: int) -> int:
    """Close what a dead process left open; how many rows."""
    vouchers = dict(connection.execute("SELECT organisation_id, voucher FROM wallet").fetchall())
    entries = []
    for request_id, amount, prompt, prepaid, *rest in connection.execute(ORPHANS).fetchall():
        payers = Payers(rest[0], rest[1], rest[2] if prepaid else 0)
        price = Price(rest[3], date.min, *rest[4:])
        ending = Ending(Buckets(uncached=prompt), 0, "orphaned", True, now)
        entry = settled(request_id, amount, payers, price, ending, vouchers.get(payers.wallet, 0))
        if payers.wallet:
            vouchers[payers.wallet] -= entry.granted
        entries.append(entry)
    post(connection, entries)
    return len(entries)
