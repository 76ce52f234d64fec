"""The running assignments of one process: each has one task, however many ask for it."""

from __future__ import annotations

import asyncio

from perilune.swarm.assignments import run_assignment
from perilune.swarm.context import Run
from perilune.swarm.halt import Halted, halting
from perilune.swarm.state import Assignment


class Team:
    def __init__(self, run: Run) -> None:
        self._run = run
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str) -> None:
        """Have the assignment worked on, unless it is already."""
        running = self._tasks.get(name)
        if running is None or running.done():
            self._tasks[name] = asyncio.create_task(self._work(name), name=f"assignment {name}")

    async def end_of(self, name: str) -> Assignment:
        """The assignment once it is final. Raises Halted, or what ended its task."""
        task = self._tasks[name]
        await asyncio.wait({task})
        if task.cancelled():
            raise Halted
        task.result()
        return self._run.state.assignments[name]

    async def drain(self) -> None:
        """Wait until no task is left. Raises the first error that is not a halt."""
        ended = await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException) and not isinstance(error, Halted | asyncio.CancelledError):
                raise error

    async def cancel(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _work(self, name: str) -> None:
        with halting(self._run.halt):
            await run_assignment(self._run, name)
