"""A whole server process for the soak: `python soak_server.py HOME`; each line it reads asks for its state.

Its model answers at once, and takes its time over the words of a call that asks it to.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from perilune.api.serve import Server, serve
from perilune.backends.base import Backend
from perilune.backends.scripted import Rule, ScriptedBackend, text_of, when
from perilune.chat.messages import Event, Request
from perilune.settings import Settings

SLOWLY = "slowly"
WORD = "word "
RULES: list[Rule] = [when(SLOWLY, WORD * 40), lambda request: WORD * 4]


class Model(ScriptedBackend):
    async def stream(self, request: Request) -> AsyncIterator[Event]:
        slowly = SLOWLY in text_of(request.messages[-1])
        async for event in super().stream(request):
            if slowly:
                await asyncio.sleep(0.01)
            yield event


async def open_model(_: Settings) -> Backend:
    return Model(RULES, chunk=len(WORD))


async def tell(server: Server) -> None:
    """One line of JSON for each line that is read."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        gc.collect()
        found = {"tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects()), "url": server.base_url}
        print(json.dumps(found), flush=True)


async def main() -> None:
    logging.basicConfig(level="INFO", filename=Path(sys.argv[1]) / "log")
    settings = Settings.load(Path(sys.argv[1]), {"port": 0}, {})
    telling: set[asyncio.Task[None]] = set()

    def ready(server: Server) -> None:
        telling.add(asyncio.create_task(tell(server)))

    await serve(settings, open_model=open_model, on_ready=ready)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
