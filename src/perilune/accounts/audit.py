"""The audit: one line for each act of an operator, in the transaction of the act, chained by digests.

Each line's digest covers the line and the digest before it, so a line that was changed, taken out or put
in between breaks the chain from there on. Whoever can write the whole file can also write a new chain: keep
the last digest elsewhere (`perilune ledger verify` prints it) to find that out too.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import dataclass

from perilune.store import Reader, Store

Detail = dict[str, str | int | float | bool | list[str] | None]
"""What an act was about. Never a key, only what names one."""


@dataclass(frozen=True)
class AuditLine:
    id: int
    at_ms: int
    actor: str
    """`command line`, or the admin key whose it was."""
    act: str
    """Such as `keys.create`."""
    detail: Detail
    digest: str


def record(connection: sqlite3.Connection, actor: str, act: str, detail: Detail, now_ms: int) -> None:
    """Write one line. Call it in the transaction that does the act."""
    last = connection.execute("SELECT id, digest FROM audit ORDER BY id DESC LIMIT 1").fetchone() or (0, "")
    number, text = last[0] + 1, json.dumps(detail, sort_keys=True, ensure_ascii=False)
    digest = _digest(last[1], number, now_ms, actor, act, text)
    connection.execute(
        "INSERT INTO audit (id, at_ms, actor, act, detail, digest) VALUES (?, ?, ?, ?, ?, ?)",
        (number, now_ms, actor, act, text, digest),
    )


def lines(source: Store | Reader, before: int | None = None, limit: int = 100) -> list[AuditLine]:
    """Newest first; page on with the last id as `before`."""
    rows = source.read(
        """SELECT id, at_ms, actor, act, detail, digest FROM audit
        WHERE id < ? ORDER BY id DESC LIMIT ?""",
        (before if before is not None else 1 << 62, limit),
    )
    return [AuditLine(*[*row[:4], json.loads(row[4]), row[5]]) for row in rows]


def broken_links(source: Store | Reader) -> list[str]:
    """Where the chain is broken, in words."""
    wrong, previous, expected = [], "", 1
    rows = source.read("SELECT id, at_ms, actor, act, detail, digest FROM audit ORDER BY id")
    for number, at_ms, actor, act, detail, digest in rows:
        if number != expected or digest != _digest(previous, number, at_ms, actor, act, detail):
            wrong.append(f"the audit's line {number} does not follow from the line before it")
        previous, expected = digest, number + 1
    return wrong


def _digest(previous: str, number: int, at_ms: int, actor: str, act: str, detail: str) -> str:
    content = json.dumps([previous, number, at_ms, actor, act, detail], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()
