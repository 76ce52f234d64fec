"""`perilune ledger`: prove the books, fold closed months, read the audit."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from typing import Any

from perilune.cli.desk import open_desk, pages
from perilune.cli.flags import Commands, add_settings, load_settings

WRONG = 1


def add(commands: Commands) -> None:
    parser = commands.add_parser("ledger", help="prove the books, fold closed months, read the audit")
    actions: Commands = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, function, said in (
        ("verify", verify, "prove that entries, balances, reservations and charges agree"),
        ("fold", fold, "replace calls of months beyond the setting ledger_months by their sums"),
        ("audit", audit, "what operators did, newest first"),
    ):
        action = actions.add_parser(name, help=said)
        add_settings(action)
        action.set_defaults(run=function)
        if name != "fold":
            action.add_argument("--json", action="store_true", help="as JSON")


def verify(given: argparse.Namespace) -> int:
    """0 when all agrees, 1 when not. A proof changes nothing that it proves."""
    with open_desk(load_settings(given), as_found=True, must_exist=True) as desk:
        proof = desk("ledger/verify")
    if given.json:
        print(json.dumps(proof, indent=2))
        return WRONG if proof["wrong"] else 0
    for line in proof["wrong"]:
        print(f"perilune: {line}", file=sys.stderr)
    if proof["wrong"]:
        return WRONG
    print(f"{proof['calls']} calls, {proof['carried']} folded calls and {proof['entries']} entries agree")
    print(f"last line of the audit: {proof['audit'] or 'none'}")
    return 0


def fold(given: argparse.Namespace) -> int:
    with open_desk(load_settings(given), must_exist=True) as desk:
        done = desk("ledger/fold")
    print(f"{done['folded']} calls folded into sums")
    return 0


def audit(given: argparse.Namespace) -> int:
    with open_desk(load_settings(given), must_exist=True) as desk:
        found = pages(desk, "audit/list", "id")
        if given.json:
            print(json.dumps([line for page in found for line in page], indent=2))
            return 0
        for page in found:
            for line in page:
                _print_line(line)
    return 0


def _print_line(line: dict[str, Any]) -> None:
    at = datetime.fromtimestamp(line["at_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    detail = ", ".join(f"{name} {value}" for name, value in line["detail"].items() if value not in (None, ""))
    print(f"{at}  {line['actor']}  {line['act']}  {detail}")
