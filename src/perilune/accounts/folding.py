"""Closed months: their rows become one carry-forward line per key, model and price, and are deleted.

Each step is one short transaction that sums and deletes the same rows, so the books agree after every step
and a crash between two leaves nothing half done. No step reads more than its share of rows, so a server goes
on answering while months of calls are folded.
"""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime

from perilune.store import Store

STEP_ROWS = 2000

UP_TO = "outcome <> 'open' AND (settled_ms < ? OR (settled_ms = ? AND id <= ?))"
CARRY = f"""INSERT INTO carried (month, key_id, project_id, model, price_id, calls, estimated, charge,
        from_cash, from_voucher, uncached, cached, output, searches, reasoning)
    SELECT ?, key_id, project_id, model, price_id, COUNT(*), SUM(estimated), SUM(charge),
        SUM(CASE WHEN prepaid = 1 THEN charge - from_voucher ELSE 0 END), SUM(from_voucher),
        SUM(uncached), SUM(cached), SUM(output), SUM(searches), SUM(reasoning)
    FROM request WHERE {UP_TO}
    GROUP BY key_id, project_id, model, price_id
    ON CONFLICT (month, key_id, project_id, model, price_id) DO UPDATE SET
        calls = carried.calls + excluded.calls, estimated = carried.estimated + excluded.estimated,
        charge = carried.charge + excluded.charge, from_cash = carried.from_cash + excluded.from_cash,
        from_voucher = carried.from_voucher + excluded.from_voucher,
        uncached = carried.uncached + excluded.uncached, cached = carried.cached + excluded.cached,
        output = carried.output + excluded.output, searches = carried.searches + excluded.searches,
        reasoning = carried.reasoning + excluded.reasoning"""


def first_kept_ms(now_s: float, months: int) -> int:
    """The beginning of the oldest month that is kept: this one, and so many closed ones before it."""
    today = datetime.fromtimestamp(now_s, UTC)
    count = today.year * 12 + today.month - 1 - months
    return int(datetime(count // 12, count % 12 + 1, 1, tzinfo=UTC).timestamp() * 1000)


def month_of(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m")


async def fold_step(store: Store, before_ms: int, rows: int = STEP_ROWS) -> int:
    """Fold at most so many rows that were settled before that instant; how many. 0 means all is done."""
    return await store.write(lambda connection: _fold(connection, before_ms, rows))


def fold_all(store: Store, before_ms: int, rows: int = STEP_ROWS) -> int:
    """`fold_step` until all is done, for code without an event loop; how many rows in all."""
    total = 0
    while done := store.write_now(lambda connection: _fold(connection, before_ms, rows)):
        total += done
    return total


def _fold(connection: sqlite3.Connection, before_ms: int, rows: int) -> int:
    """The oldest rows, no further than to the end of the oldest one's month: a line is of one month."""
    oldest = connection.execute(
        "SELECT MIN(settled_ms) FROM request WHERE outcome <> 'open' AND settled_ms < ?", (before_ms,)
    ).fetchone()[0]
    if oldest is None:
        return 0
    last = connection.execute(
        """SELECT settled_ms, id FROM (
            SELECT settled_ms, id FROM request WHERE outcome <> 'open' AND settled_ms < ?
            ORDER BY settled_ms, id LIMIT ?) oldest
        ORDER BY settled_ms DESC, id DESC LIMIT 1""",
        (min(before_ms, _month_end(oldest)), rows),
    ).fetchone()
    chosen = (last[0], last[0], last[1])
    connection.execute(CARRY, (month_of(oldest), *chosen))
    return connection.execute(f"DELETE FROM request WHERE {UP_TO}", chosen).rowcount


def _month_end(ms: int) -> int:
    day = datetime.fromtimestamp(ms / 1000, UTC)
    following = datetime(day.year + day.month // 12, day.month % 12 + 1, 1, tzinfo=UTC)
    return int(following.timestamp() * 1000)
