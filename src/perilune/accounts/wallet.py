"""What organisations have paid in and were granted: entries, each made once, and the balance they add up to.

    deposit       cash that an operator has received
    voucher       credit that was granted; spent before cash
    correction    cash or credit put right, also downwards

An entry has a reference of the operator's choice (an invoice, a payment's id). Entering it a second time
changes nothing, so a top-up that may or may not have arrived can be sent again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from perilune.accounts import audit
from perilune.errors import InputError, NotFound
from perilune.store import Store

Kind = Literal["deposit", "voucher", "correction"]
LONGEST_TEXT = 500
MOST_NANO = 1 << 60
"""About a thousand million USD: keeps every sum within the books' integers."""


@dataclass(frozen=True)
class Prepaid:
    """The rule by which wallets pay for calls."""

    activation: int
    """Nano-USD that must have been deposited."""


@dataclass(frozen=True)
class Entry:
    id: int
    organisation_id: int
    kind: str
    cash: int
    voucher: int
    reference: str
    note: str
    actor: str
    created_ms: int


@dataclass(frozen=True)
class Fee:
    """A web search that was charged. While `prepaid` is off it takes nothing from cash and vouchers."""

    search_id: str
    key_id: int
    project_id: int
    price_version: str
    charge: int
    cash: int
    voucher: int
    settled_ms: int


FEES = """SELECT r.id, r.key_id, r.project_id, v.name, r.charge,
        CASE WHEN r.prepaid = 1 THEN r.from_voucher - r.charge ELSE 0 END, -r.from_voucher, r.settled_ms
    FROM request r JOIN project p ON p.id = r.project_id JOIN price_version v ON v.id = r.price_id
    WHERE r.searches > 0 AND p.organisation_id = ? AND r.id < ? ORDER BY r.id DESC LIMIT ?"""


class Wallets:
    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    def enter(
        self,
        organisation_id: int,
        kind: Kind,
        amount: int,
        reference: str,
        *,
        note: str = "",
        to_voucher: bool = False,
        actor: str,
    ) -> tuple[Entry, bool]:
        """The entry, and whether it is new. A voucher goes to the granted credit, a deposit to the cash, a
        correction to what `to_voucher` says.

        Raises NotFound, InputError: for an amount of the wrong sign, a reference that was used for something
        else, or credit corrected below zero."""
        _check(kind, amount, reference, note)
        granted = kind == "voucher" or (kind == "correction" and to_voucher)
        cash, voucher = (0, amount) if granted else (amount, 0)
        now = int(self._clock() * 1000)

        def work(connection: sqlite3.Connection) -> tuple[Entry, bool]:
            found = _find(connection, organisation_id, reference)
            if found is not None:
                if (found.kind, found.cash, found.voucher) != (kind, cash, voucher):
                    raise InputError(
                        f"{reference!r} was entered before as another {found.kind}",
                        field="reference",
                        mend="give this entry its own reference",
                    )
                return found, False
            _move(connection, organisation_id, kind, cash, voucher)
            connection.execute(
                """INSERT INTO entry
                    (organisation_id, kind, cash, voucher, reference, note, actor, created_ms)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
                (organisation_id, kind, cash, voucher, reference, note, actor, now),
            )
            detail: audit.Detail = {
                "organisation": organisation_id,
                "cash": cash,
                "voucher": voucher,
                "reference": reference,
                "note": note,
            }
            audit.record(connection, actor, f"account.{kind}", detail, now)
            made = _find(connection, organisation_id, reference)
            assert made is not None, "it was just entered"
            return made, True

        return self._store.write_now(work)

    def entries(self, organisation_id: int, before: int | None = None, limit: int = 100) -> list[Entry]:
        """Newest first; page on with the last id as `before`."""
        rows = self._store.read(
            f"{ENTRIES} WHERE organisation_id = ? AND id < ? ORDER BY id DESC LIMIT ?",
            (organisation_id, before if before is not None else 1 << 62, limit),
        )
        return [Entry(*row) for row in rows]

    def fees(self, organisation_id: int, before: str = "~", limit: int = 100) -> list[Fee]:
        """Web searches, newest first; page on with the last id as `before`. Those of folded months are in
        the sums that `usage` shows."""
        return [Fee(*row) for row in self._store.read(FEES, (organisation_id, before, limit))]


ENTRIES = "SELECT id, organisation_id, kind, cash, voucher, reference, note, actor, created_ms FROM entry"


def _find(connection: sqlite3.Connection, organisation_id: int, reference: str) -> Entry | None:
    row = connection.execute(
        f"{ENTRIES} WHERE organisation_id = ? AND reference = ?", (organisation_id, reference)
    ).fetchone()
    return None if row is None else Entry(*row)


def _move(connection: sqlite3.Connection, organisation_id: int, kind: Kind, cash: int, voucher: int) -> None:
    row = connection.execute(
        "SELECT cash, voucher FROM wallet WHERE organisation_id = ?", (organisation_id,)
    ).fetchone()
    if row is None:
        raise NotFound(
            f"no organisation {organisation_id}",
            field="organisation",
            mend="`perilune account show` lists them",
        )
    if row[1] + voucher < 0 or abs(row[0] + cash) > MOST_NANO or row[1] + voucher > MOST_NANO:
        raise InputError(
            "the balance would leave its bounds", field="amount", mend="correct by less than is there"
        )
    connection.execute(
        """UPDATE wallet SET cash = cash + ?, voucher = voucher + ?, deposited = deposited + ?
        WHERE organisation_id = ?""",
        (cash, voucher, cash if kind == "deposit" else 0, organisation_id),
    )


def _check(kind: str, amount: int, reference: str, note: str) -> None:
    if kind not in get_args(Kind):
        raise InputError(f"{kind!r} is no kind of entry", field="kind", mend=", ".join(get_args(Kind)))
    if abs(amount) > MOST_NANO:
        raise InputError(
            "is more than the books can hold", field="amount", mend="it is in nano-USD: check it"
        )
    if amount == 0 or (amount < 0 and kind != "correction"):
        raise InputError("must be more than zero", field="amount", mend="use a correction to take back")
    if not reference.strip() or len(reference) > LONGEST_TEXT or not reference.isprintable():
        raise InputError(
            f"must have 1 to {LONGEST_TEXT} printable characters",
            field="reference",
            mend="name the payment; the same reference is entered only once",
        )
    if len(note) > LONGEST_TEXT or not note.isprintable():
        raise InputError(
            f"must have at most {LONGEST_TEXT} characters, all of them printable",
            field="note",
            mend="write it on one line",
        )
