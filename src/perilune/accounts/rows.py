"""Rows of the ledger as the rest of Perilune sees them: reserved, settled, read back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from perilune.accounts.keys import Principal
from perilune.accounts.prices import Buckets, Price
from perilune.store import Reader, Store

SEARCH_MODEL = "$web_search"
"""What stands in the place of a model's name in the row of a search."""

Outcome = Literal["finished", "aborted", "failed", "orphaned"]
"""`finished`: the whole answer; `aborted`: the caller left; `failed`: the model's side broke;
`orphaned`: this process died during the call."""

ROWS = """SELECT r.id, r.model, p.name, r.outcome, r.estimated, r.charge, r.reserved,
    r.uncached, r.cached, r.output, r.reasoning, r.opened_ms, r.settled_ms, r.key_id, r.project_id
    FROM request r JOIN price_version p ON p.id = r.price_id"""


class Reservation(msgspec.Struct, frozen=True):
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


class Charge(msgspec.Struct, frozen=True):
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


def find_row(source: Store | Reader, request_id: str) -> UsageRow | None:
    rows = source.read(f"{ROWS} WHERE r.id = ?", (request_id,))
    return usage_row(rows[0]) if rows else None


def list_rows(source: Store | Reader, project_id: int | None, before: str, limit: int) -> list[UsageRow]:
    """Newest first; page on with the last id as `before`."""
    if project_id is None:
        rows = source.read(f"{ROWS} WHERE r.id < ? ORDER BY r.id DESC LIMIT ?", (before, limit))
    else:
        rows = source.read(
            f"{ROWS} WHERE r.id < ? AND r.project_id = ? ORDER BY r.id DESC LIMIT ?",
            (before, project_id, limit),
        )
    return [usage_row(row) for row in rows]


def usage_row(row: tuple[Any, ...]) -> UsageRow:
    values = list(row)
    values[4] = bool(values[4])
    return UsageRow(*values)
