"""`perilune chat`: one message, one answer."""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from perilune.cli.flags import Commands, add_settings, load_settings, whole
from perilune.cli.house import open_house
from perilune.cli.terminal import harmless
from perilune.errors import BackendAuth, InputError, PeriluneError

if TYPE_CHECKING:
    from perilune.backends.base import Backend
    from perilune.settings import Settings


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "chat",
        help="ask the model one thing",
        description="Sends one message and prints the answer as it comes; thinking goes to standard error. "
        "With PERILUNE_BASE_URL and PERILUNE_API_KEY it asks that server.",
    )
    add_settings(parser, "checkpoint", "template", "threads")
    parser.add_argument("message", metavar="TEXT", help="what to ask; - reads it from standard input")
    parser.add_argument("--system", default="", metavar="TEXT", help="the system message")
    parser.add_argument("--model", default="", metavar="NAME", help="which model (default: the first served)")
    parser.add_argument("--max-tokens", type=whole, default=512, metavar="N", help="longest answer (512)")
    parser.add_argument("--no-thinking", action="store_true", help="answer without thinking first")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    message = sys.stdin.read() if given.message == "-" else given.message
    if not message.strip():
        raise InputError("is empty", field="message", mend="say something")
    given.message = message
    return asyncio.run(_run(given, load_settings(given)))


async def _run(given: argparse.Namespace, settings: Settings) -> int:
    if settings.base_url:
        from perilune.backends.upstream import UpstreamBackend

        there = replace(
            settings, model_url=settings.base_url, model_key=settings.api_key, model_name=given.model
        )
        try:
            server = await UpstreamBackend.open(there)
            try:
                return await _ask(server, given)
            finally:
                await server.close()
        except PeriluneError as error:
            _blame_client(error)
            raise
    async with open_house(settings, "chat") as house:
        return await _ask(house.metered, given)


def _blame_client(error: PeriluneError) -> None:
    """For a client command, what is wrong with the endpoint's settings is wrong with the client's."""
    if isinstance(error, BackendAuth):
        error.mend = "correct PERILUNE_API_KEY, or ask who runs the server"
    client = {"model_key": "api_key", "model_url": "base_url"}
    error.field = client.get(error.field or "", error.field)


async def _ask(backend: Backend, given: argparse.Namespace) -> int:
    """Print one answer. 0 when it came to its end, 1 when its length ran out."""
    from perilune.chat.messages import Finished, Message, Request, TextDelta, ThinkingDelta, ToolCallDelta

    system = (Message(role="system", content=given.system),) if given.system else ()
    request = Request(
        model=given.model or (await backend.models())[0].id,
        messages=(*system, Message(role="user", content=given.message)),
        thinking=not given.no_thinking,
        max_tokens=given.max_tokens,
    )
    reason, begun = "stop", False
    try:
        async for event in backend.stream(request):
            match event:
                case ThinkingDelta():
                    print(harmless(event.text, sys.stderr), end="", file=sys.stderr, flush=True)
                case TextDelta():
                    begun = True
                    print(harmless(event.text, sys.stdout), end="", flush=True)
                case ToolCallDelta():
                    print(harmless(event.arguments, sys.stdout), end="", flush=True)
                case Finished():
                    reason = event.reason
                    usage = event.usage
                    cut = ", cut off there: --max-tokens" if reason == "length" else ""
                    spent = f"{usage.prompt_tokens} + {usage.completion_tokens} tokens{cut}"
                    print(f"\n[{spent}]", file=sys.stderr)
    except PeriluneError:
        # What failed stands on a line of its own.
        if begun:
            print(flush=True)
        raise
    print()
    return 0 if reason != "length" else 1
