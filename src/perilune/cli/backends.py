"""`perilune backends`: the backends of a running server: how they stand, and which take new calls."""

from __future__ import annotations

import argparse
import json
from typing import Any

from perilune.cli.desk import open_door, print_table
from perilune.cli.flags import Commands, add_settings, load_settings


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "backends",
        help="how the backends of a running server stand; drain and enable them",
        description="Speaks to the admin door of the server that owns HOME (perilune serve --admin-port).",
    )
    actions: Commands = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    shown = actions.add_parser("list", help="all of them, with their state and the calls under way")
    shown.add_argument("--json", action="store_true", help="as JSON")
    shown.set_defaults(run=list_backends)
    off = actions.add_parser("drain", help="send it no new calls; those under way end as they would")
    on = actions.add_parser("enable", help="send it calls again")
    for action, name in ((off, "drain"), (on, "enable")):
        action.add_argument("backend", metavar="NAME", help="its name in perilune.toml")
        action.set_defaults(run=switch, act=name)
    for action in (shown, off, on):
        add_settings(action)


def list_backends(given: argparse.Namespace) -> int:
    with open_door(load_settings(given)) as desk:
        found = desk("backend/list")
    if given.json:
        print(json.dumps(found, indent=2))
        return 0
    _print(found)
    return 0


def switch(given: argparse.Namespace) -> int:
    with open_door(load_settings(given)) as desk:
        found = desk(f"backend/{given.act}", backend=given.backend)
    _print(found)
    return 0


def _print(found: list[dict[str, Any]]) -> None:
    rows = [
        (
            one["name"],
            one["model"],
            one["kind"],
            "drained" if one["drained"] else one["breaker"],
            "-" if one["running"] is None else one["running"],
            one["region"] or "-",
            one["vendor"] or "-",
            " ".join(one["data_classes"]) or "-",
            one["error"] or "-",
        )
        for one in found
    ]
    print_table(
        ("backend", "model", "kind", "state", "running", "region", "vendor", "data", "last failure"), rows
    )
