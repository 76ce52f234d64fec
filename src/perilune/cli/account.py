"""`perilune account`: organisations, projects, balances and rate tiers."""

from __future__ import annotations

import argparse
import json
from typing import Any

from perilune.cli.desk import Desk, money, open_desk, pages, print_table
from perilune.cli.flags import Commands, add_settings, dollars, load_settings, whole
from perilune.cli.keys import at, dollars_or_none

ENTRIES = {
    "topup": ("deposit", "enter a deposit that you have received"),
    "voucher": ("voucher", "grant credit, which is spent before cash"),
    "correct": ("correction", "put a balance right; the amount may be below zero, such as -2.50"),
}
AMOUNT = "such as 25.50"
FEE_COLUMNS = ("web search", "key", "charge", "cash", "voucher", "price")


def add(commands: Commands) -> None:
    parser = commands.add_parser("account", help="organisations, projects, balances and rate tiers")
    actions: Commands = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    shown = actions.add_parser("show", help="everything, with balances, budgets and limits")
    shown.add_argument("--json", action="store_true", help="as JSON")
    shown.set_defaults(run=show)
    listed = actions.add_parser(
        "entries", help="deposits, vouchers and corrections, and fees for web searches, newest first"
    )
    listed.set_defaults(run=entries)
    _add_entries(actions)
    new = actions.add_parser("organisation", help="make an organisation, with a project named default")
    new.set_defaults(run=organisation)
    project_ = actions.add_parser("project", help="make a project")
    project_.add_argument("--budget", type=dollars, metavar="USD", help="the most that its keys may spend")
    project_.set_defaults(run=project)
    for action in (new, project_):
        action.add_argument("name", metavar="NAME")
    limit = actions.add_parser("budget", help="change the most that all keys of a project may spend")
    limit.add_argument("project", type=whole, metavar="N", help="number of the project")
    limit.add_argument("budget", type=dollars_or_none, metavar="USD", help="in all, ever; or: none")
    limit.set_defaults(run=budget)
    rate = actions.add_parser("tier", help="give an organisation its own rate tier")
    rate.add_argument("tier", metavar="TIER", help="a tier or a ladder; or: none, for the setting's")
    rate.set_defaults(run=tier)
    for action in (listed, project_, rate):
        _add_organisation(action)
    for action in (shown, listed, new, project_, limit, rate):
        add_settings(action)


def _add_entries(actions: Commands) -> None:
    for name, (kind, said) in ENTRIES.items():
        action = actions.add_parser(name, help=said)
        action.add_argument(
            "amount", type=signed if kind == "correction" else dollars, metavar="USD", help=AMOUNT
        )
        action.add_argument(
            "--reference",
            default="",
            metavar="TEXT",
            help="such as the invoice; one reference is entered only once (default: a new one each time)",
        )
        action.add_argument("--note", default="", metavar="TEXT", help="why; kept with the entry")
        if kind == "correction":
            action.add_argument("--voucher", action="store_true", help="of the granted credit, not the cash")
        _add_organisation(action)
        add_settings(action)
        action.set_defaults(run=enter, kind=kind)


def _add_organisation(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--organisation", type=whole, default=1, metavar="N", help="number of the organisation (1)"
    )


def signed(text: str) -> int:
    """Nano-USD from an amount that may be below zero, for argparse."""
    return -dollars(text[1:]) if text.startswith("-") else dollars(text)


def show(given: argparse.Namespace) -> int:
    with open_desk(load_settings(given)) as desk:
        found = desk("account/show")
    if given.json:
        print(json.dumps(found, indent=2))
        return 0
    if found["prepaid"]:
        print(f"prepaid: calls are paid from the balance, after a deposit of ${money(found['activation'])}")
    else:
        print("prepaid is off: calls are priced and written down, and no balance is needed")
    rows = [
        (
            one["id"],
            one["name"],
            money(one["available"]),
            money(one["cash"]),
            money(one["voucher"]),
            money(one["reserved"]),
            money(one["deposited"]),
            _limits(one["limits"]),
        )
        for one in found["organisations"]
    ]
    header = ("organisation", "name", "available", "cash", "voucher", "reserved", "deposited", "tier")
    print_table(header, rows)
    print()
    projects = [
        (one["id"], one["name"], one["organisation_id"], *map(money, _amounts(one)))
        for one in found["projects"]
    ]
    print_table(("project", "name", "organisation", "budget", "spent", "reserved"), projects)
    return 0


def entries(given: argparse.Namespace) -> int:
    with open_desk(load_settings(given)) as desk:
        found = [
            one
            for page in pages(desk, "account/entries", "id", organisation=given.organisation)
            for one in page
        ]
        searches = pages(desk, "account/fees", "search_id", organisation=given.organisation)
        fees = [one for page in searches for one in page]
    rows = [
        (
            one["id"],
            at(one["created_ms"]),
            one["kind"],
            money(one["cash"]),
            money(one["voucher"]),
            one["reference"],
            one["note"],
        )
        for one in found
    ]
    print_table(("entry", "entered", "kind", "cash", "voucher", "reference", "note"), rows)
    if fees:
        print()
        print_table(FEE_COLUMNS, [_fee(one) for one in fees])
    return 0


def _fee(one: dict[str, Any]) -> tuple[str, ...]:
    amounts = (money(one[name]) for name in ("charge", "cash", "voucher"))
    return (one["search_id"], str(one["key_id"]), *amounts, one["price_version"])


def enter(given: argparse.Namespace) -> int:
    with open_desk(load_settings(given)) as desk:
        done = desk(
            "account/enter",
            kind=given.kind,
            amount=given.amount,
            organisation=given.organisation,
            reference=given.reference,
            note=given.note,
            to_voucher=getattr(given, "voucher", False),
        )
    said = "entered" if done["new"] else "was entered before: nothing changed"
    print(f"{done['entry']['reference']} {said}; ${money(done['available'])} available")
    return 0


def organisation(given: argparse.Namespace) -> int:
    return _made(given, lambda desk: desk("account/organisation", name=given.name))


def project(given: argparse.Namespace) -> int:
    return _made(
        given,
        lambda desk: desk(
            "account/project", name=given.name, organisation=given.organisation, budget=given.budget
        ),
    )


def budget(given: argparse.Namespace) -> int:
    with open_desk(load_settings(given)) as desk:
        desk("account/budget", project=given.project, budget=given.budget)
    said = "no budget" if given.budget is None else f"${money(given.budget)} in all"
    print(f"project {given.project} has {said}")
    return 0


def tier(given: argparse.Namespace) -> int:
    own = None if given.tier == "none" else given.tier
    with open_desk(load_settings(given)) as desk:
        done = desk("account/tier", organisation=given.organisation, tier=own)
    print(f"organisation {given.organisation} has the tier {done['tier']}")
    return 0


def _made(given: argparse.Namespace, act: Any) -> int:
    with open_desk(load_settings(given)) as desk:
        opened: Desk = desk
        ((kind, number),) = act(opened).items()
    print(f"{kind} {number} ({given.name})")
    return 0


def _amounts(one: dict[str, Any]) -> tuple[int | None, int, int]:
    return one["budget"], one["spent"], one["reserved"]


def _limits(limits: dict[str, Any]) -> str:
    parts = [f"{name} {limits[name]}" for name in ("concurrency", "rpm", "tpm", "tpd") if limits[name]]
    return f"{limits['name']}: {', '.join(parts) or 'no limits'}"
