"""A real server on a real socket for the tests of the API, and backends that misbehave on purpose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from perilune.accounts.accounts import Accounts
from perilune.api.serve import Server
from perilune.backends.base import Backend, ModelEntry
from perilune.backends.router import Router
from perilune.backends.scripted import Call, Reply, ScriptedBackend, scripted_entry, text_of, usage_of
from perilune.chat.messages import Completion, Event, Message, Request, TextDelta
from perilune.settings import Settings


class Api:
    """A running server with what tests ask of it."""

    def __init__(self, server: Server, accounts: Accounts, settings: Settings) -> None:
        self.server = server
        self.accounts = accounts
        keys = json.loads((settings.home / "keys.json").read_text())
        self.key: str = keys["project_key"]
        self.admin_key: str = keys["admin_key"]
        self.url = server.base_url
        self.root = server.root_url
        self.auth = {"Authorization": f"Bearer {self.key}"}

    def rows(self) -> list[str]:
        """Outcomes of all calls so far, newest first; the books must agree."""
        assert self.accounts.verify() == ()
        return [row.outcome for row in self.accounts.usage_rows()]


@asynccontextmanager
async def serving(home: Path, backend: Backend, **flags: object) -> AsyncIterator[Api]:
    settings = Settings.load(home, {"port": 0} | flags, {})
    routed = Router([backend], serve_as=settings.serve_as)
    home.mkdir(exist_ok=True)
    with Accounts.open(home, settings) as accounts:
        server = Server(settings, routed, accounts)
        await server.start()
        try:
            yield Api(server, accounts, settings)
        finally:
            await server.stop(grace_s=1)


def talk(request: Request) -> Reply:
    """Calls the first tool until its result is there; else thinks, where it may, and greets."""
    if request.tools and request.tool_choice != "none" and request.messages[-1].role == "user":
        return [Call(request.tools[0].name, {"place": "Bœn"}), Call(request.tools[0].name, {"place": "Riga"})]
    thought = "A greeting is due." if request.thinking else None
    message = Message(
        role="assistant", content=f"You said: {text_of(request.messages[-1])}", reasoning=thought
    )
    return Completion(message=message, finish_reason="stop", usage=usage_of(request, message))


def talker(entry: ModelEntry | None = None, chunk: int = 3) -> ScriptedBackend:
    return ScriptedBackend(talk, entry=entry, chunk=chunk)


class Strange:
    """A backend with one bad habit."""

    def __init__(self) -> None:
        self.closed = 0

    async def models(self) -> tuple[ModelEntry, ...]:
        return (scripted_entry(),)

    async def ready(self) -> None:
        return None

    async def count_tokens(self, request: Request) -> int | None:
        return 7

    async def close(self) -> None:
        return None

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        raise NotImplementedError
        yield


class Endless(Strange):
    """Never stops talking, and knows when it was made to."""

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        try:
            while True:
                yield TextDelta("on ")
                await asyncio.sleep(0.005)
        finally:
            self.closed += 1


class Mute(Endless):
    """Never says a word."""

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        try:
            await asyncio.sleep(3600)
            yield TextDelta("?")
        finally:
            self.closed += 1


class Failing(Strange):
    """Raises `error` after so many words."""

    def __init__(self, error: Exception, words: int) -> None:
        super().__init__()
        self._error = error
        self._words = words

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        for number in range(self._words):
            yield TextDelta(f"{number} ")
        raise self._error


class Cut(Strange):
    """Ends without saying why."""

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        yield TextDelta("and th")


class Slow(ScriptedBackend):
    """Takes its time between any two events."""

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        async for event in super().stream(request):
            await asyncio.sleep(0.05)
            yield event
