"""The proof that the books agree: rows with prices, accounts and wallets with rows and entries, entries with
the audit.

Every sum is one SQL statement, so it sees one moment, even beside a server that goes on writing; settled
rows, which never change, are looked at a page at a time. Rows that were folded into sums
(`accounts/folding.py`) count by their sums.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import date
from typing import Any

from perilune.accounts import audit
from perilune.accounts.prices import Buckets, Price
from perilune.store import Reader, Store

Source = Store | Reader
PAGE = 10_000


def verify(source: Source) -> tuple[str, ...]:
    """Every disagreement in words; none when the books are right."""
    return (
        *_wrong_charges(source),
        *_wrong_open(source),
        *_wrong_sums(source),
        *_wrong_accounts(source),
        *_wrong_wallets(source),
        *_entries_without_act(source),
        *audit.broken_links(source),
    )


def _wrong_charges(source: Source) -> list[str]:
    wrong: list[str] = []
    rows = _settled_page(source, "")
    while rows:
        for request_id, charge, granted, prepaid, *rest in rows:
            due = _due(rest)
            if due != charge:
                wrong.append(f"request {request_id} is charged {charge}, what it used costs {due}")
            if not 0 <= granted <= (charge if prepaid else 0):
                wrong.append(f"request {request_id} took {granted} of its charge {charge} from vouchers")
        rows = _settled_page(source, rows[-1][0])
    return wrong


def _wrong_open(source: Source) -> list[str]:
    """An open row has moved nothing but reservations."""
    rows = source.read(
        """SELECT id, charge FROM request
        WHERE outcome = 'open' AND (charge <> 0 OR from_voucher <> 0 OR settled_ms IS NOT NULL)"""
    )
    return [f"request {request_id} is open and charged {charge}" for request_id, charge in rows]


def _due(columns: list[Any]) -> int:
    """What is used, by the four counts, at the rates of the price version after them."""
    used, name, rates = columns[:4], columns[4], columns[5:]
    return Price(name, date.min, *rates).charge(Buckets(*used))


def _settled_page(source: Source, after: str) -> list[tuple[Any, ...]]:
    return source.read(
        """SELECT r.id, r.charge, r.from_voucher, r.prepaid, r.uncached, r.cached, r.output, r.searches,
            p.name, p.input, p.cached_input, p.output, p.search
        FROM request r JOIN price_version p ON p.id = r.price_id
        WHERE r.outcome <> 'open' AND r.id > ? ORDER BY r.id LIMIT ?""",
        (after, PAGE),
    )


def _wrong_sums(source: Source) -> list[str]:
    """A sum's charge is that of its calls, each of which was rounded up by less than one."""
    rows = source.read(
        """SELECT c.month, c.key_id, c.model, c.calls, c.charge, c.from_cash, c.from_voucher,
            c.uncached, c.cached, c.output, c.searches, p.name, p.input, p.cached_input, p.output, p.search
        FROM carried c JOIN price_version p ON p.id = c.price_id"""
    )
    wrong = []
    for month, key_id, model, calls, charge, cash, voucher, *rest in rows:
        due = _due(rest)
        name = f"the sum of {month}, key {key_id}, {model}"
        if calls < 1 or not due <= charge <= due + calls:
            wrong.append(f"{name} is charged {charge} for {calls} calls, what they used costs {due}")
        if min(cash, voucher) < 0 or cash + voucher > charge:
            wrong.append(f"{name} took {cash} of its charge {charge} from cash and {voucher} from vouchers")
    return wrong


def _wrong_accounts(source: Source) -> list[str]:
    wrong = []
    for owner, column in (("api_key", "key_id"), ("project", "project_id")):
        rows = source.read(
            f"""SELECT o.id, a.spent, a.reserved, COALESCE(SUM(b.charge), 0), COALESCE(SUM(b.reserved), 0)
            FROM {owner} o JOIN account a ON a.id = o.account_id
            LEFT JOIN (
                SELECT {column} AS owner_id,
                    CASE WHEN outcome <> 'open' THEN charge ELSE 0 END AS charge,
                    CASE WHEN outcome = 'open' THEN reserved ELSE 0 END AS reserved
                FROM request
                UNION ALL SELECT {column}, charge, 0 FROM carried
            ) b ON b.owner_id = o.id
            GROUP BY o.id, a.spent, a.reserved"""
        )
        for number, spent, reserved, charged, opened in rows:
            if (spent, reserved) != (charged, opened):
                wrong.append(
                    f"{owner} {number} has spent {spent} and reserved {reserved}, "
                    f"its requests say {charged} and {opened}"
                )
    return wrong


def _wrong_wallets(source: Source) -> list[str]:
    rows = source.read(
        """SELECT w.organisation_id, w.cash, w.voucher, w.reserved, w.deposited,
            COALESCE(SUM(b.cash), 0), COALESCE(SUM(b.voucher), 0),
            COALESCE(SUM(b.reserved), 0), COALESCE(SUM(b.deposited), 0)
        FROM wallet w LEFT JOIN (
            SELECT organisation_id, cash, voucher, 0 AS reserved,
                CASE WHEN kind = 'deposit' THEN cash ELSE 0 END AS deposited
            FROM entry
            UNION ALL SELECT p.organisation_id,
                CASE WHEN r.outcome <> 'open' THEN r.from_voucher - r.charge ELSE 0 END,
                -r.from_voucher,
                CASE WHEN r.outcome = 'open' THEN r.reserved ELSE 0 END, 0
            FROM request r JOIN project p ON p.id = r.project_id WHERE r.prepaid = 1
            UNION ALL SELECT p.organisation_id, -c.from_cash, -c.from_voucher, 0, 0
            FROM carried c JOIN project p ON p.id = c.project_id
        ) b ON b.organisation_id = w.organisation_id
        GROUP BY w.organisation_id, w.cash, w.voucher, w.reserved, w.deposited"""
    )
    wrong = []
    for number, *held in rows:
        names = ("cash", "voucher", "reserved", "deposited")
        for name, kept, due in zip(names, held[:4], held[4:], strict=True):
            if kept != due:
                wrong.append(f"organisation {number} has {name} {kept}, its entries and requests say {due}")
    return wrong


def _entries_without_act(source: Source) -> list[str]:
    """An entry and its line of the audit are written in one transaction. Entries are read first: what is
    entered meanwhile has its line already."""
    entries = source.read("SELECT id, organisation_id, kind, cash, voucher, reference FROM entry ORDER BY id")
    acts = {_entered(*row) for row in source.read("SELECT act, detail FROM audit")}
    return [
        f"entry {number} of organisation {entry[0]} has no line in the audit"
        for number, *entry in entries
        if tuple(entry) not in acts
    ]


def _entered(act: str, text: str) -> tuple[object, ...]:
    """The entry that a line of the audit tells of. Of damaged lines `audit.broken_links` tells."""
    detail: dict[str, object] = {}
    with suppress(ValueError):
        detail = json.loads(text)
    sums = (detail.get("cash"), detail.get("voucher"), detail.get("reference"))
    return (detail.get("organisation"), act.removeprefix("account."), *sums)
