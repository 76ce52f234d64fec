"""The command `perilune`: finds the command that was asked for, and turns its errors into one line each.

A command's file adds its parser and names the function that runs it; that function imports its room when it
is called, so `perilune --help` loads nothing else.
"""

from __future__ import annotations

import errno
import os
import sys
from argparse import Namespace
from collections.abc import Sequence

from perilune import __version__
from perilune.cli import (
    account,
    backends,
    chat,
    checkpoint,
    connect,
    demo,
    doctor,
    index,
    inspect,
    keys,
    ledger,
    serve,
    swarm,
    usage,
)
from perilune.cli.flags import Commands, OneLineParser
from perilune.cli.terminal import harmless
from perilune.errors import InputError, PeriluneError, shown

INTERRUPTED = 130
BAD_PATHS = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP)
"""What even looking at a path can end in, whichever command was given it."""
ENGINE_PACKAGES = ("torch", "safetensors", "numpy", "llguidance")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Never raises for what a user can cause."""
    try:
        try:
            given = build_parser().parse_args(arguments)
            code = given.run(given)
            assert isinstance(code, int), "a command returns its exit code"
        finally:
            sys.stdout.flush()
        return code
    except PeriluneError as error:
        return complain(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ENGINE_PACKAGES:
            raise
        return complain(
            f"this needs the engine, and {error.name} is not installed (pip install 'perilune[engine]'; for "
            "models elsewhere none is needed: perilune connect URL)"
        )
    except KeyboardInterrupt:
        return complain("stopped", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; a second failure at exit would only make noise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in BAD_PATHS or error.filename is None:
            raise
        where = shown(os.fsdecode(error.filename))
        return complain(f"{where}: {error.strerror} (give a path that can be read)", InputError.exit_code)


def complain(text: str, code: int = 1) -> int:
    """Say what went wrong in one line on standard error; the exit code it was given."""
    print(f"perilune: {harmless(' '.join(text.split()), sys.stderr)}", file=sys.stderr)
    return code


def print_version(_: Namespace) -> int:
    print(f"perilune {__version__}")
    return 0


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="perilune",
        description="A self-hosted Kimi K2.6 platform: crash-proof agent swarm, wire-compatible API.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong input, 3 HOME in use, 4 storage, 5 checkpoint, "
        "6 model endpoint, 7 engine, 8 sandbox, 9 swarm, 10 budget used up, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"perilune {__version__}")
    commands: Commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=OneLineParser
    )
    money = (keys, account, usage, ledger)
    rest = (backends, index, inspect, checkpoint, demo)
    for command in (doctor, serve, connect, swarm, chat, *money, *rest):
        command.add(commands)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=print_version)
    return parser
