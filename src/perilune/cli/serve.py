"""`perilune serve`: the API, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse

from perilune.cli.flags import Commands, add_deterministic, add_settings, load_settings


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve the API for the bundled or the connected model",
        description="Serves the API: chat, models, files, balance, metrics; /docs describes it. The "
        "first start writes HOME/keys.json. SIGTERM lets running answers end, then exits 0.",
    )
    add_settings(
        parser,
        "host",
        "port",
        "admin_port",
        "tls_cert",
        "tls_key",
        "serve_as",
        "checkpoint",
        "template",
        "dtype",
        "threads",
        "log_level",
    )
    add_deterministic(parser)
    parser.add_argument("--any-port", action="store_true", help="take the next free port when PORT is taken")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    from perilune.api import serve

    serve.run(load_settings(given))
    return 0
