"""Posting: what the entries of the day book do to the tables, many calls in a few statements.

A call that began and ended since the last time becomes one row at once, and each account and wallet is
changed once for all of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from perilune.accounts.entries import Entry, Moves, Opened, Payers, Released, Settled

OPEN = """INSERT INTO request
        (id, key_id, project_id, price_id, model, reserved, uncached, opened_ms, prepaid)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
WHOLE = """INSERT INTO request
        (id, key_id, project_id, price_id, model, reserved, opened_ms, prepaid, outcome, estimated, charge,
        from_voucher, uncached, cached, output, searches, reasoning, settled_ms)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
SETTLE = """UPDATE request SET outcome = ?, estimated = ?, charge = ?, from_voucher = ?, uncached = ?,
        cached = ?, output = ?, searches = ?, reasoning = ?, settled_ms = ?
    WHERE id = ? AND outcome = 'open'"""
RELEASE = "DELETE FROM request WHERE id = ? AND outcome = 'open'"
SPEND = "UPDATE account SET spent = spent + ?, reserved = reserved + ? WHERE id = ?"
PAY = """UPDATE wallet SET cash = cash - ?, voucher = voucher - ?, reserved = reserved + ?
    WHERE organisation_id = ?"""

VOUCHER = "SELECT voucher FROM wallet WHERE organisation_id = ?"
NOTHING: Moves = (0, 0, 0)


class CallPosting:
    """See `store.Posting`."""

    def __init__(self) -> None:
        self.encode = msgspec.json.Encoder().encode
        self._decoder = msgspec.json.Decoder(Entry)

    def decode(self, line: bytes) -> Entry:
        entry: Entry = self._decoder.decode(line)
        return entry

    def post(self, connection: sqlite3.Connection, entries: Sequence[Entry]) -> bool:
        return post(connection, entries)


def post(connection: sqlite3.Connection, entries: Sequence[Entry]) -> bool:
    """Inside a transaction. Whether granted credit was gone that a call was to take: then cash pays for it.
    Raises sqlite3.IntegrityError where the books do not fit the entries."""
    granted = _with_what_is_granted(connection, entries)
    _post(connection, granted)
    return granted is not entries


def _with_what_is_granted(connection: sqlite3.Connection, entries: Sequence[Entry]) -> Sequence[Entry]:
    """The entries, or others that take no more granted credit than there is: an operator may have corrected
    it while they were entered."""
    taken: dict[int, int] = {}
    for entry in entries:
        if isinstance(entry, Settled) and entry.granted:
            taken[entry.payers.wallet] = taken.get(entry.payers.wallet, 0) + entry.granted
    vouchers = {number: connection.execute(VOUCHER, (number,)).fetchone()[0] for number in taken}
    if all(amount <= vouchers[number] for number, amount in taken.items()):
        return entries
    fitted: list[Entry] = []
    for entry in entries:
        if isinstance(entry, Settled) and entry.granted:
            granted = min(entry.granted, vouchers[entry.payers.wallet])
            vouchers[entry.payers.wallet] -= granted
            entry = msgspec.structs.replace(entry, granted=granted)
        fitted.append(entry)
    return fitted


def _post(connection: sqlite3.Connection, entries: Sequence[Entry]) -> None:
    opened: dict[str, Opened] = {}
    whole: list[tuple[object, ...]] = []
    settled: list[Settled] = []
    released: list[str] = []
    for entry in entries:
        match entry:
            case Opened():
                opened[entry.request_id] = entry
            case Settled():
                if (first := opened.pop(entry.request_id, None)) is None:
                    settled.append(entry)
                else:
                    whole.append((*_beginning(first), first.at_ms, _is_prepaid(first), *_ending(entry)))
            case Released():
                if opened.pop(entry.request_id, None) is None:
                    released.append(entry.request_id)
    connection.executemany(WHOLE, whole)
    for request_id in released:  # first: its id may be used again
        _expect_one(connection.execute(RELEASE, (request_id,)), request_id)
    begun = [(*_beginning(one), one.prompt, one.at_ms, _is_prepaid(one)) for one in opened.values()]
    connection.executemany(OPEN, begun)
    for one in settled:
        _expect_one(connection.execute(SETTLE, (*_ending(one), one.request_id)), one.request_id)
    _move(connection, entries)


def _beginning(entry: Opened) -> tuple[object, ...]:
    return (
        *(entry.request_id, entry.key_id, entry.project_id, entry.price_id, entry.model),
        entry.amount,
    )


def _is_prepaid(entry: Opened) -> int:
    return int(entry.payers.wallet != 0)


def _ending(entry: Settled) -> tuple[object, ...]:
    return (
        *(entry.outcome, int(entry.estimated), entry.charge, entry.granted),
        *(entry.uncached, entry.cached, entry.output, entry.searches, entry.reasoning, entry.at_ms),
    )


def _expect_one(done: sqlite3.Cursor, request_id: str) -> None:
    if done.rowcount != 1:
        raise sqlite3.IntegrityError(f"request {request_id} is not open")


def _move(connection: sqlite3.Connection, entries: Sequence[Entry]) -> None:
    sums: dict[Payers, Moves] = {}
    for entry in entries:
        spent, reserved, granted = entry.moves
        before = sums.get(entry.payers, NOTHING)
        sums[entry.payers] = (before[0] + spent, before[1] + reserved, before[2] + granted)
    for payers, (spent, reserved, granted) in sums.items():
        connection.execute(SPEND, (spent, reserved, payers.key))
        connection.execute(SPEND, (spent, reserved, payers.project))
        if payers.wallet:
            connection.execute(PAY, (spent - granted, granted, reserved, payers.wallet))
