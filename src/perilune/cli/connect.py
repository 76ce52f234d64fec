"""`perilune connect`: try a model endpoint, then write it to HOME's settings."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import TYPE_CHECKING

from perilune.cli.flags import Commands, add_settings, load_settings
from perilune.errors import ConfigError

if TYPE_CHECKING:
    from perilune.settings import Settings


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "connect",
        help="use a model of your own: any OpenAI-compatible endpoint",
        description="Tries the endpoint with one small call, and saves it to HOME/perilune.toml when it "
        "answers. `perilune connect --none` goes back to the bundled model.",
    )
    add_settings(parser)
    parser.add_argument("url", nargs="?", metavar="URL", help="base URL, such as https://host/v1")
    parser.add_argument("--key", default="", help="the endpoint's key; - reads it from standard input")
    parser.add_argument("--name", default="", help="the model's name there (needed when it lists several)")
    parser.add_argument("--none", action="store_true", help="forget the endpoint")
    parser.set_defaults(run=run, parser=parser)


def run(given: argparse.Namespace) -> int:
    from perilune.homefile import FILE_NAME, save_connection

    settings = load_settings(given)
    if given.none == bool(given.url):
        given.parser.error("give either URL or --none")
    if given.none:
        save_connection(settings.home, "", "", "")
        print("Back to the bundled model.")
        return 0
    if settings.backends:
        raise ConfigError(
            f"{settings.home / FILE_NAME} has [[backends]], which take the place of one endpoint",
            field="backends",
            mend="add the endpoint as one more of them, or remove them first",
        )
    from perilune.backends.connect import PROBE_TIMEOUT_S, probe

    key = sys.stdin.readline().strip() if given.key == "-" else given.key or _known_key(settings, given.url)
    patience = min(PROBE_TIMEOUT_S, settings.model_timeout_s)
    found = asyncio.run(probe(given.url, key, given.name, timeout_s=patience))
    save_connection(settings.home, found.url, key, found.name, found.context_length)
    context = f", {found.context_length:,} tokens of context" if found.context_length else ""
    print(f"Connected  {found.name} at {found.url}: answered in {found.seconds:.1f} s{context}")
    if not found.counts_tokens:
        print("Note       its answers do not say what they used: costs will be estimates")
    print('Try next   perilune swarm run "GOAL" --repo DIR --agents 8 --budget 1.00')
    return 0


def _known_key(settings: Settings, url: str) -> str:
    """The key from the environment, or the saved one if it is this endpoint's: a key goes to no other."""
    from perilune.backends.endpoint import base_url

    if not settings.model_key or os.environ.get("PERILUNE_MODEL_KEY"):
        return settings.model_key
    same = bool(settings.model_url) and base_url(settings.model_url) == base_url(url)
    return settings.model_key if same else ""
