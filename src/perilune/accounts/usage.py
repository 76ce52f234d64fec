"""What was used, added up: by month, project, key, model or price, over single calls and carried sums."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from typing import Literal, get_args

from perilune.accounts.prices import Buckets
from perilune.accounts.rows import ROWS, UsageRow, list_rows, usage_row
from perilune.errors import InputError
from perilune.store import Reader, Store

Source = Store | Reader
Axis = Literal["month", "day", "project", "key", "model", "price"]
AXES: tuple[str, ...] = get_args(Axis)
DAY_MS = 86_400_000

TOTALS = """SELECT r.settled_ms / 86400000 AS day, '' AS month,
        r.project_id, r.key_id, r.model, v.name AS price,
        COUNT(*) AS calls, SUM(r.estimated) AS estimated, SUM(r.uncached) AS uncached,
        SUM(r.cached) AS cached, SUM(r.output) AS output, SUM(r.reasoning) AS reasoning,
        SUM(r.charge) AS charge
    FROM request r JOIN price_version v ON v.id = r.price_id
    WHERE r.outcome <> 'open' AND r.settled_ms >= ? AND r.settled_ms < ?
    GROUP BY r.settled_ms / 86400000, r.project_id, r.key_id, r.model, v.name
    UNION ALL SELECT 0, c.month, c.project_id, c.key_id, c.model, v.name, c.calls, c.estimated, c.uncached,
        c.cached, c.output, c.reasoning, c.charge
    FROM carried c JOIN price_version v ON v.id = c.price_id WHERE c.month >= ? AND c.month < ?"""

CALLS = f"""{ROWS} WHERE r.id < ? AND r.outcome <> 'open' AND r.settled_ms >= ? AND r.settled_ms < ?
    AND (? IS NULL OR r.project_id = ?) ORDER BY r.id DESC LIMIT ?"""


@dataclass(frozen=True)
class Total:
    """Settled calls that share what they were grouped by."""

    group: tuple[str, ...]
    calls: int
    estimated: int
    uncached: int
    cached: int
    output: int
    reasoning: int
    charge: int
    """Nano-USD."""

    @property
    def buckets(self) -> Buckets:
        return Buckets(self.uncached, self.cached, self.output)

    def plus(self, other: Total) -> Total:
        sums = {name: getattr(self, name) + getattr(other, name) for name in COUNTS}
        return Total(self.group, **sums)


MONEY = {"charge": "charge_nano_usd", "reserved": "reserved_nano_usd"}
"""What reports call those columns."""
COUNTS = tuple(one.name for one in fields(Total) if one.name != "group")


def totals(
    source: Source, by: Sequence[str] = ("model",), since: date | None = None, until: date | None = None
) -> list[Total]:
    """Sums over the days from `since` up to, not including, `until` (UTC), sorted by group.

    Folded months have no days: they count when their first day lies within, and stand under that day.
    Raises InputError for an unknown axis."""
    for axis in by:
        if axis not in AXES:
            raise InputError(f"cannot group by {axis!r}", field="by", mend=f"use {', '.join(AXES)}")
    first, end = since or date(1970, 1, 1), until or date(9999, 1, 1)
    rows = source.read(TOTALS, (_ms(first), _ms(end), first.isoformat()[:7], _month_bound(end)))
    found: dict[tuple[str, ...], Total] = {}
    for day, month, project, key, model, price, *counts in rows:
        if month and date.fromisoformat(f"{month}-01") < first:
            continue
        on = f"{month}-01" if month else _day(day)
        names = {
            "month": on[:7],
            "day": on,
            "project": str(project),
            "key": str(key),
            "model": model,
            "price": price,
        }
        total = Total(tuple(names[axis] for axis in by), *counts)
        found[total.group] = found[total.group].plus(total) if total.group in found else total
    return [found[group] for group in sorted(found)]


def totals_csv(found: Iterable[Total], by: Sequence[str]) -> str:
    """With a header; the charge in nano-USD and in USD."""
    lines = [[*total.group, *(getattr(total, name) for name in COUNTS), usd(total.charge)] for total in found]
    return _csv([*by, *COUNTS[:-1], "charge_nano_usd", "charge_usd"], lines)


def calls(
    source: Source,
    since: date | None = None,
    until: date | None = None,
    project_id: int | None = None,
    *,
    before: str = "~",
    limit: int = 100,
) -> list[UsageRow]:
    """Calls that were settled on the days from `since` up to, not including, `until` (UTC), newest first;
    page on with the last id as `before`. Without days, open calls too."""
    if since is None and until is None:
        return list_rows(source, project_id, before, limit)
    first, end = _ms(since or date(1970, 1, 1)), _ms(until or date(9999, 1, 1))
    found = source.read(CALLS, (before, first, end, project_id, project_id, limit))
    return [usage_row(row) for row in found]


def calls_csv(rows: Iterable[UsageRow]) -> str:
    """One line per call, with a header."""
    names = [one.name for one in fields(UsageRow)]
    lines = [[getattr(row, name) for name in names] + [usd(row.charge)] for row in rows]
    return _csv([*(MONEY.get(name, name) for name in names), "charge_usd"], lines)


def usd(nano: int) -> str:
    """Exactly, without a float: `0.001629000`."""
    sign, size = ("-", -nano) if nano < 0 else ("", nano)
    return f"{sign}{size // 1_000_000_000}.{size % 1_000_000_000:09}"


def _csv(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_harmless(value) for value in line] for line in lines)
    return text.getvalue()


def _harmless(value: object) -> object:
    """Text that a spreadsheet would take for a formula is quoted: model names come from outside."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)


def _month_bound(end: date) -> str:
    """Months whose first day lies before `end` are smaller, as text."""
    return end.isoformat()[:7] if end.day == 1 else f"{end.isoformat()[:7]}~"


def _day(number: int) -> str:
    return datetime.fromtimestamp(number * DAY_MS / 1000, UTC).date().isoformat()
