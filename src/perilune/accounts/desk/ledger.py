"""Acts on the ledger: prove it, add it up, list its calls, fold its closed months; and the audit."""

from __future__ import annotations

from datetime import date

import msgspec

from perilune.accounts import audit
from perilune.accounts.accounts import Accounts
from perilune.accounts.audit import AuditLine
from perilune.accounts.desk.act import Act, Acts, Nothing
from perilune.accounts.rows import UsageRow
from perilune.accounts.usage import Total, totals
from perilune.accounts.usage import calls as calls_of
from perilune.errors import InputError

MOST_LINES = 1000


class Period(msgspec.Struct, forbid_unknown_fields=True):
    by: list[str] = msgspec.field(default_factory=lambda: ["model"])
    since: date | None = None
    until: date | None = None
    """The first day that does not count."""


class SomeCalls(msgspec.Struct, forbid_unknown_fields=True):
    project: int | None = None
    since: date | None = None
    until: date | None = None
    """The first day that does not count."""
    before: str = "~"
    limit: int = 100


class SomeLines(msgspec.Struct, forbid_unknown_fields=True):
    before: int | None = None
    limit: int = 100


def verify(accounts: Accounts, _: Nothing, actor: str) -> dict[str, object]:
    """Everything that disagrees, how much was proved, and the audit's last digest to keep elsewhere."""
    counts = accounts.store.read(
        """SELECT (SELECT COUNT(*) FROM request), (SELECT COALESCE(SUM(calls), 0) FROM carried),
            (SELECT COUNT(*) FROM entry)"""
    )
    last = audit.lines(accounts.store, limit=1)
    return {
        "wrong": accounts.verify(),
        "calls": counts[0][0],
        "carried": counts[0][1],
        "entries": counts[0][2],
        "audit": last[0].digest if last else "",
    }


def usage(accounts: Accounts, period: Period, actor: str) -> list[Total]:
    _check_days(period)
    return totals(accounts.store, period.by, period.since, period.until)


def calls(accounts: Accounts, which: SomeCalls, actor: str) -> list[UsageRow]:
    _check_days(which)
    days = (which.since, which.until)
    return calls_of(accounts.store, *days, which.project, before=which.before, limit=_lines(which.limit))


def _check_days(which: Period | SomeCalls) -> None:
    if which.since and which.until and which.since >= which.until:
        raise InputError(
            "is not after `since`", field="until", mend="it is the first day that does not count"
        )


def fold(accounts: Accounts, _: Nothing, actor: str) -> dict[str, int]:
    return {"folded": accounts.fold(actor=actor)}


def audit_lines(accounts: Accounts, which: SomeLines, actor: str) -> list[AuditLine]:
    return audit.lines(accounts.store, which.before, _lines(which.limit))


def _lines(limit: int) -> int:
    return min(max(limit, 1), MOST_LINES)


ACTS: Acts = {
    "ledger/verify": Act(Nothing, verify, changes=False),
    "ledger/usage": Act(Period, usage, changes=False),
    "ledger/calls": Act(SomeCalls, calls, changes=False),
    "ledger/fold": Act(Nothing, fold, changes=True),
    "audit/list": Act(SomeLines, audit_lines, changes=False),
}
