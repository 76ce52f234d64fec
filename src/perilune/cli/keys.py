"""`perilune keys`: who may call, what they may do, and how much they may spend."""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, date, datetime

from perilune.cli.desk import money, open_desk, print_table
from perilune.cli.flags import Commands, add_settings, dollars, load_settings, whole

DAY_MS = 86_400_000


def add(commands: Commands) -> None:
    parser = commands.add_parser("keys", help="make, list, limit and disable API keys")
    actions: Commands = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    shown = actions.add_parser("list", help="all keys, with what they have spent")
    shown.add_argument("--json", action="store_true", help="as JSON")
    shown.set_defaults(run=list_keys)
    new = actions.add_parser("create", help="make a key; it is shown this once")
    new.add_argument("name", metavar="NAME", help="what it is for")
    new.add_argument("--project", type=whole, metavar="N", help="number of its project (the first)")
    new.add_argument("--admin", action="store_true", help="for the admin door instead of for models")
    new.add_argument("--budget", type=dollars, metavar="USD", help="the most that it may spend in all")
    new.add_argument("--expires", type=expiry, metavar="DAY", help="a day such as 2027-01-31, or 30d")
    new.set_defaults(run=create)
    end = actions.add_parser("disable", help="refuse a key from now on, for good")
    end.set_defaults(run=disable)
    limit = actions.add_parser("budget", help="change the most that a key may spend")
    limit.set_defaults(run=budget)
    for action in (end, limit):
        action.add_argument("key", type=whole, metavar="N", help="number of the key")
    limit.add_argument("budget", type=dollars_or_none, metavar="USD", help="in all, ever; or: none")
    for action in (shown, new, end, limit):
        add_settings(action)


def expiry(text: str) -> int:
    """Milliseconds since 1970: the last of that day (UTC), or so many days from now."""
    if text.endswith("d") and text[:-1].isdecimal() and 0 < int(text[:-1]) < 100_000:
        return int(time.time() * 1000) + int(text[:-1]) * DAY_MS
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no day such as 2027-01-31, and no 30d") from error
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000) + DAY_MS - 1


def dollars_or_none(text: str) -> int | None:
    return None if text == "none" else dollars(text)


def list_keys(given: argparse.Namespace) -> int:
    with open_desk(load_settings(given)) as desk:
        keys = desk("keys/list")
    if given.json:
        print(json.dumps(keys, indent=2))
        return 0
    rows = [
        (
            key["id"],
            key["name"],
            key["hint"],
            f"{key['project_id']} ({key['project']})",
            " ".join(key["scopes"]),
            _state(key["disabled"], key["expires_ms"]),
            money(key["budget"]),
            money(key["spent"]),
            money(key["reserved"]),
            at(key["last_used_ms"]) if key["last_used_ms"] else "never",
        )
        for key in keys
    ]
    header = (
        "number",
        "name",
        "key",
        "project",
        "scopes",
        "state",
        "budget",
        "spent",
        "reserved",
        "last used",
    )
    print_table(header, rows)
    return 0


def create(given: argparse.Namespace) -> int:
    with open_desk(load_settings(given)) as desk:
        made = desk(
            "keys/create",
            name=given.name,
            scopes=["admin" if given.admin else "chat"],
            project=given.project,
            budget=given.budget,
            expires_ms=given.expires,
        )
    print(made["key"])
    return 0


def disable(given: argparse.Namespace) -> int:
    with open_desk(load_settings(given)) as desk:
        desk("keys/disable", key=given.key)
    print(f"key {given.key} is disabled")
    return 0


def budget(given: argparse.Namespace) -> int:
    with open_desk(load_settings(given)) as desk:
        desk("keys/budget", key=given.key, budget=given.budget)
    print(f"key {given.key} has {'no budget' if given.budget is None else f'${money(given.budget)} in all'}")
    return 0


def _state(disabled: bool, expires_ms: int | None) -> str:
    if disabled:
        return "disabled"
    if expires_ms is None:
        return "active"
    return f"{'expired' if expires_ms <= time.time() * 1000 else 'until'} {at(expires_ms)}"


def at(ms: int) -> str:
    """A moment for tables, in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
