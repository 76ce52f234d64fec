"""What all commands share: a parser that answers a mistake with one line, and flags that are settings."""

from __future__ import annotations

import argparse
import difflib
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from perilune.settings import Settings

USAGE_ERROR = 2
MOST_USD = 1_000_000
"""Of one amount on the command line."""

Commands = Any
"""argparse's list of sub-commands; its class has no public name."""

SETTING_FLAGS = {
    "home": ("DIR", "the folder that holds all state (default: perilune in the user's data folder)"),
    "host": ("ADDRESS", "address to listen on"),
    "port": ("PORT", "port of the API; 0 takes any free one"),
    "admin_port": ("PORT", "loopback port of the admin door; 0 leaves it closed"),
    "tls_cert": ("FILE", "certificate with its chain (PEM): the API then speaks HTTPS only"),
    "tls_key": ("FILE", "the certificate's key (PEM, no password)"),
    "serve_as": ("NAME", "another name under which the served model answers"),
    "checkpoint": ("DIR", "folder of the model that the engine serves (default: the bundled perilune-nano)"),
    "template": ("FORMAT", "chat format: k2.6, k2.5, k2-thinking, or jinja for the checkpoint's own file"),
    "dtype": ("FORMAT", "number format of the engine: float32 or bfloat16"),
    "threads": ("N", "threads of the engine; 0 lets it choose"),
    "max_agents": ("N", "most sub-agents that live at once; more wait"),
    "retries": ("N", "how often an assignment whose result was rejected is tried again"),
    "log_level": ("LEVEL", "debug, info, warning or error"),
}
"""Setting -> placeholder, help. The values are text: settings.py converts and checks them."""


class OneLineParser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """What is left over is refused by the command that was given it: its help knows what goes there."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            near = difflib.get_close_matches(left[0].partition("=")[0], self._option_string_actions, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(left)}{meant}")
        return found, left

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"perilune: {message} (see: {self.prog} --help)\n")


def add_settings(parser: argparse.ArgumentParser, *names: str) -> None:
    """Flags for these settings and --home."""
    for name in ("home", *names):
        placeholder, said = SETTING_FLAGS[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}", dest=f"setting_{name}", metavar=placeholder, help=said
        )


def add_deterministic(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--deterministic",
        dest="setting_deterministic",
        action="store_const",
        const=True,
        help="let nothing else that the engine computes change a bit of an answer; slower",
    )


def add_unsandboxed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--unsandboxed",
        dest="setting_unsandboxed",
        action="store_const",
        const=True,
        help="let agents run commands without isolation where no sandbox is available",
    )


def load_settings(given: argparse.Namespace) -> Settings:
    """Settings from file, environment and the flags of this command. Raises ConfigError."""
    from perilune.settings import Settings

    flags = {
        name.removeprefix("setting_"): value
        for name, value in vars(given).items()
        if name.startswith("setting_")
    }
    return Settings.load(None, flags)


def whole(text: str) -> int:
    """A count of at least one, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def dollars(text: str) -> int:
    """Nano-USD from an amount such as 1.50, for argparse."""
    from decimal import Decimal, InvalidOperation

    try:
        amount = Decimal(text.removeprefix("$"))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite():
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of dollars, such as 1.50")
    if amount <= 0 or amount > MOST_USD:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and up to {MOST_USD:,} dollars")
    return int(amount * 1_000_000_000)
