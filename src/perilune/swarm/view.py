"""The live view of a session in a terminal. It reads the journal and nothing else, so it can run beside the
session, in another process, or long after it.

    await follow(HOME/swarm/ID.db, sys.stdout, ended=lambda: task.done())

On a terminal the frame is drawn in place; on a pipe each thing that matters is one line.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from perilune.swarm import events
from perilune.swarm.estimate import usd
from perilune.swarm.events import ORCHESTRATOR, Entry
from perilune.swarm.journal import JournalReader
from perilune.swarm.report import UNMETERED, duration
from perilune.swarm.state import SessionState, apply

INTERVAL_S = 0.2
LAST_EVENTS = 8
NARROW = 60
"""Below so many columns labels give way to figures."""

_STATES = ("working", "suspended", "verifying", "merging", "queued", "done", "failed")
_BAR = {"done": "#", "failed": "x", "merging": "+", "verifying": "+", "working": ">", "suspended": "~"}
_HIDE, _SHOW, _UP, _CLEAR = "\x1b[?25l", "\x1b[?25h", "\x1b[{}A\r", "\x1b[J"


class Watch:
    """A journal followed from its first entry: the state it comes to, and the last things that happened."""

    def __init__(self, journal: Path) -> None:
        self._path = journal
        self._reader: JournalReader | None = None
        self.state = SessionState()
        self.last: deque[str] = deque(maxlen=LAST_EVENTS)

    def poll(self) -> list[str]:
        """Take in what is new; the lines that tell it. A journal that is not there yet has nothing new.

        Raises JournalCorrupt, StoreError."""
        if self._reader is None:
            if not self._path.is_file():
                return []
            self._reader = JournalReader(self._path)
        lines = []
        for entry in self._reader.read(self.state.seq):
            self.state = apply(self.state, entry)
            told = describe(entry, self.state)
            if told is not None:
                lines.append(told)
        self.last.extend(lines)
        return lines

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


async def follow(
    journal: Path,
    out: TextIO,
    *,
    ended: Callable[[], bool] | None = None,
    width: int | None = None,
) -> SessionState:
    """Show the session until `ended()` says that nobody works on it; without it, an onlooker, until the
    journal says that it has finished or stopped. Returns the last state.

    Raises JournalCorrupt, StoreError, and what writing to `out` raises."""
    watch = Watch(journal)
    screen = _Screen(out, width) if out.isatty() else None
    try:
        while True:
            over = ended is not None and ended()  # asked first, so that the last events are still read
            first = watch.state.seq == 0
            lines = await asyncio.to_thread(watch.poll)
            if ended is None:
                over = watch.state.finished or watch.state.status == "stopped"
            if screen is not None:
                screen.draw(frame(watch.state, list(watch.last), screen.columns, now_ms()))
            else:
                # Of a session that is taken up again, its whole past would be noise.
                _print(out, lines[-LAST_EVENTS:] if first else lines)
            if over:
                return watch.state
            await asyncio.sleep(INTERVAL_S)
    finally:
        watch.close()
        if screen is not None:
            screen.close()


def now_ms() -> int:
    return int(time.time() * 1000)


# ---- one line per thing that matters


def describe(entry: Entry, state: SessionState) -> str | None:
    """What an entry means to a person; None for the small steps between."""
    event = entry.event
    match event:
        case events.AgentCreated():
            return f"sub-agent {plain(event.name)}: {plain(event.system_prompt)}"
        case events.MergeRefused():
            return f"conflict in {', '.join(event.paths) or _task(event.id, state)}"
        case events.VerdictGiven(accepted=False):
            return f"rejected {_task(event.id, state)}: {plain(event.reason)}"
        case events.RetryScheduled():
            return f"again {_task(event.id, state)}, after attempt {event.attempt + 1}"
        case events.AssignmentDone():
            return f"done {_task(event.id, state)}: {plain(event.answer)}"
        case events.DeadLettered():
            return f"given up {_task(event.id, state)}: {plain(event.reason)}"
        case events.ModelFailed():
            pause = "" if event.retry_ms is None else f", again in {duration(event.retry_ms)}"
            return f"model call of {_who(event.agent, state)} failed: {plain(event.message)}{pause}"
        case _:
            return _describe_session(event)


def _describe_session(event: events.Event) -> str | None:
    match event:
        case events.SessionStarted():
            return f"session {event.id} started: {plain(event.goal)}"
        case events.SessionResumed():
            return "session resumed"
        case events.BudgetChanged():
            return f"budget is now {event.budget.steps:,} steps"
        case events.SessionStopped():
            return f"session stopped: {plain(event.message)}"
        case events.SessionFinished():
            return f"session {event.status}: {plain(event.message)}"
        case _:
            return None


def plain(text: str) -> str:
    """One line that cannot move the cursor: the words are a model's."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def _task(assignment: str, state: SessionState) -> str:
    return plain(state.assignments[assignment].prompt)


def _who(agent: str, state: SessionState) -> str:
    return agent if agent == ORCHESTRATOR else _task(agent, state)


def _print(out: TextIO, lines: list[str]) -> None:
    for line in lines:
        out.write(line + "\n")
    if lines:
        out.flush()


# ---- the frame


def frame(state: SessionState, last: list[str], width: int, now: int) -> list[str]:
    """The lines of the view, none wider than `width`."""
    if state.started is None:
        return [_cut("waiting for the session to begin", width)]
    lines = [
        f"{plain(state.session.goal)}",
        f"{state.status}  {_bar(state, width)}",
        _agents(state, width),
        *_figures(state, width, now),
        "",
        *last,
    ]
    return [_cut(line, width) for line in lines]


def _bar(state: SessionState, width: int) -> str:
    """One character per share of the work: done, in hand, waiting."""
    total = len(state.session.files) or len(state.assignments)
    room = min(max(width - len(state.status) - 16, 8), 60)
    counts = {name: state.count(name) for name in _BAR}
    cells = "".join(mark * (counts[name] * room // max(total, 1)) for name, mark in _BAR.items())
    return f"[{cells[:room].ljust(room, '.')}] {counts['done']}/{total}"


def _agents(state: SessionState, width: int) -> str:
    """Sub-agents by state; those that nobody is in are left out."""
    counts = {name: state.count(name) for name in _STATES}
    shown = "  ".join(f"{name} {number}" for name, number in counts.items() if number) or "none yet"
    return shown if width < NARROW else f"agents: {shown}"


def _figures(state: SessionState, width: int, now: int) -> list[str]:
    spent, budget = state.spent, state.budget
    share = 100 * spent.cached_tokens // max(spent.prompt_tokens, 1)
    steps = f"{spent.steps:,}/{budget.steps:,} steps, {state.critical_steps:,} critical"
    tokens = f"{spent.prompt_tokens:,} in ({share} % cached), {spent.completion_tokens:,} out"
    limit = "" if budget.nano_usd is None else f" of {usd(budget.nano_usd)}"
    cost = f"USD {usd(spent.nano_usd)}{limit}"
    running = state.status == "running"
    clock = duration(max((now if running else state.updated_at) - state.started_at, 0))
    if width < NARROW:
        return [steps, tokens, f"{cost}, {clock}"]
    free = " (not charged)" if state.session.entry.backend in UNMETERED else ""
    extras = f"{state.retries} retries, {state.merges} merges, {state.resumes} resumes"
    return [
        f"steps:  {steps}; {extras}",
        f"tokens: {tokens}",
        f"cost:   {cost} at {state.session.entry.price} prices{free}; {clock}",
    ]


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"


class _Screen:
    """Draws frames over one another, in place, and leaves the last one standing."""

    def __init__(self, out: TextIO, width: int | None) -> None:
        self._out = out
        self._width = width
        self._height = 0
        self._shown: list[str] = []
        out.write(_HIDE)

    @property
    def columns(self) -> int:
        # The last column stays free: a full line would wrap on some terminals.
        return (self._width or shutil.get_terminal_size((80, 24)).columns) - 1

    def draw(self, lines: list[str]) -> None:
        rows = shutil.get_terminal_size((80, 24)).lines
        lines = lines[: max(rows - 1, 1)]
        if lines == self._shown:
            return
        back = _UP.format(self._height) if self._height else ""
        self._out.write(back + _CLEAR + "".join(line + "\n" for line in lines))
        self._out.flush()
        self._shown, self._height = lines, len(lines)

    def close(self) -> None:
        self._out.write(_SHOW)
        self._out.flush()
