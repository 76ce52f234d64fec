"""What a session did, from its journal alone: the same words whoever reads it, running, stopped or done.

report = read_report(HOME/swarm/ID.db)
to_markdown(report)    for people and pull requests
to_json(report)        for programs; the fields of `Report`
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from perilune.errors import InputError
from perilune.store import replace_file
from perilune.swarm import events
from perilune.swarm.estimate import usd
from perilune.swarm.events import Budget, Entry
from perilune.swarm.journal import JournalReader
from perilune.swarm.state import Assignment, SessionState, Spent, apply

UNMETERED = frozenset({"embedded", "scripted"})
"""Backends whose model runs here: the price is what the same work costs elsewhere."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try at an assignment, and what was made of it."""

    number: int
    """From 1."""
    outcome: str
    """`merged`, `accepted` (nothing to merge), `rejected`, `conflict`, `failed`, or `open`."""
    said: str = ""
    """The sub-agent's last sentence."""
    reason: str = ""
    """Why it was not taken."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One assignment."""

    id: str
    task: str
    agent: str
    wave: int
    status: str
    """`done`, `failed`, or what it is doing."""
    attempts: tuple[Attempt, ...]
    steps: int
    edits: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    nano_usd: int
    wall_ms: int
    """From its first claim to its end, or to the last event."""
    files: tuple[str, ...] = ()
    """What was merged."""
    reason: str = ""
    """Why it is not done."""


class NotDone(msgspec.Struct, frozen=True):
    what: str
    why: str


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    assignments: int
    done: int
    failed: int
    steps: int
    critical_steps: int
    """The orchestrator's steps plus, stage by stage, those of the longest sub-agent."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    lost_tokens: int
    """Counted as spent for calls whose answer nobody heard."""
    nano_usd: int
    wall_ms: int
    """First to last event."""
    active_ms: int
    """The part of it in which a process worked on the session."""
    tool_calls: int
    merges: int
    retries: int
    resumes: int
    failed_calls: int
    lost_calls: int

    @property
    def cached_percent(self) -> float:
        return round(100 * self.cached_tokens / max(self.prompt_tokens, 1), 1)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a session."""

    id: str
    goal: str
    repo: str
    base: str
    branch: str
    tip: str
    model: str
    price: str
    charged: bool
    """Whether the model is one that somebody bills; else the cost is what it would be."""
    status: str
    """`complete`, `incomplete`, `stopped` or `running`."""
    message: str
    budget: Budget
    totals: Totals
    assignments: tuple[Row, ...]
    not_done: tuple[NotDone, ...]
    events: int
    started_at: int
    """Milliseconds since 1970, as `ended_at`, that of the last event."""
    ended_at: int
    version: int = 1


def read_report(path: Path | str) -> Report:
    """The report of a journal. Raises SessionNotFound, JournalCorrupt; InputError for an empty journal."""
    reader = JournalReader(path)
    try:
        return build_report(reader.read())
    finally:
        reader.close()


def write_report(journal: Path, markdown: Path, json: Path) -> Report:
    """Write both files, each whole or not at all. Raises what `read_report` does, and StoreError."""
    report = read_report(journal)
    replace_file(markdown, to_markdown(report).encode())
    replace_file(json, to_json(report))
    return report


def build_report(entries: Iterable[Entry]) -> Report:
    """The report of a journal's entries, from the first one."""
    state, history = SessionState(), _History()
    for entry in entries:
        state = apply(state, entry)
        history.add(entry)
    if state.started is None:
        raise InputError("the session's journal is empty", mend="start the session again")
    session, end = state.session, state.updated_at
    rows = tuple(_row(one, history.attempts.get(one.id, []), end) for one in state.assignments.values())
    return Report(
        id=session.id,
        goal=session.goal,
        repo=session.repo,
        base=session.base,
        branch=session.branch,
        tip=state.tip,
        model=session.entry.id,
        price=session.entry.price,
        charged=session.entry.backend not in UNMETERED,
        status=state.status,
        message=state.message,
        budget=state.budget,
        totals=_totals(state, state.spent, history.active_ms),
        assignments=rows,
        not_done=_not_done(state),
        events=state.seq,
        started_at=state.started_at,
        ended_at=end,
    )


def to_json(report: Report) -> bytes:
    """Indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


class _History:
    """What the state does not keep: every attempt's end, and when somebody worked."""

    def __init__(self) -> None:
        self.attempts: dict[str, list[Attempt]] = {}
        self.active_ms = 0
        self._last = 0

    def add(self, entry: Entry) -> None:
        event = entry.event
        # Between the last event and a resume nobody was at work.
        if self._last and not isinstance(event, events.SessionResumed):
            self.active_ms += max(entry.at - self._last, 0)
        self._last = entry.at
        match event:
            case events.AttemptStarted():
                self.attempts.setdefault(event.id, []).append(
                    Attempt(number=event.attempt + 1, outcome="open")
                )
            case events.AttemptEnded():
                outcome = "open" if event.status == "succeeded" else "failed"
                reason = "" if outcome == "open" else event.message
                self._change(event.id, outcome=outcome, said=event.message, reason=reason)
            case events.VerdictGiven():
                outcome = "accepted" if event.accepted else "rejected"
                self._change(event.id, outcome=outcome, reason=event.reason)
            case events.Merged():
                self._change(event.id, outcome="merged")
            case events.MergeRefused():
                self._change(event.id, outcome="conflict", reason=event.reason)

    def _change(self, assignment: str, **fields: str) -> None:
        mine = self.attempts[assignment]
        mine[-1] = msgspec.structs.replace(mine[-1], **fields)


def _row(one: Assignment, attempts: list[Attempt], end: int) -> Row:
    began = one.started_at
    return Row(
        id=one.id,
        task=one.prompt,
        agent=one.agent,
        wave=one.stage,
        status=one.status,
        attempts=tuple(attempts),
        steps=one.spent.steps,
        edits=one.edits,
        prompt_tokens=one.spent.prompt_tokens,
        cached_tokens=one.spent.cached_tokens,
        completion_tokens=one.spent.completion_tokens,
        nano_usd=one.spent.nano_usd,
        wall_ms=0 if began is None else max((one.finished_at or end) - began, 0),
        files=tuple(one.paths),
        reason="" if one.status == "done" else one.reason,
    )


def _totals(state: SessionState, spent: Spent, active_ms: int) -> Totals:
    return Totals(
        assignments=len(state.assignments),
        done=state.count("done"),
        failed=state.count("failed"),
        steps=spent.steps,
        critical_steps=state.critical_steps,
        prompt_tokens=spent.prompt_tokens,
        cached_tokens=spent.cached_tokens,
        completion_tokens=spent.completion_tokens,
        lost_tokens=spent.lost_tokens,
        nano_usd=spent.nano_usd,
        wall_ms=max(state.updated_at - state.started_at, 0),
        active_ms=active_ms,
        tool_calls=state.tool_calls,
        merges=state.merges,
        retries=state.retries,
        resumes=state.resumes,
        failed_calls=state.failed_calls,
        lost_calls=state.lost_calls,
    )


def _not_done(state: SessionState) -> tuple[NotDone, ...]:
    by_prompt = {one.prompt: one for one in state.assignments.values() if one.phase != "done"}
    return tuple(NotDone(what, _why(by_prompt.get(what), state)) for what in state.not_done)


def _why(one: Assignment | None, state: SessionState) -> str:
    if one is None:
        return "no sub-agent was given it yet" if not state.finished else "no sub-agent was given it"
    if one.phase == "failed":
        tried = f"{one.attempt + 1} attempt{'s' if one.attempt else ''}"
        return f"given up after {tried}: {one.reason or 'no reason given'}"
    if state.status == "running":
        return f"still {one.status}"
    return "the session stopped before its end" + (f"; last: {one.reason}" if one.reason else "")


# ---- Markdown


def to_markdown(report: Report) -> str:
    parts = [
        f"# {_line(report.goal)}",
        _headline(report),
        *_facts(report),
        "",
        *_not_done_section(report),
        *_assignment_section(report),
        "",
        *_budget_section(report),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _headline(report: Report) -> str:
    totals = report.totals
    done = f"{totals.done} of {totals.assignments} assignments done"
    said = f" {_line(report.message)}" if report.message else ""
    return f"\n**{report.status.capitalize()}**: {done}.{said}\n"


def _facts(report: Report) -> list[str]:
    totals = report.totals
    paid = "" if report.charged else " (nothing was charged: the model ran on this machine)"
    lines = [
        ("Result", f"branch `{report.branch}` at `{report.tip[:12]}`, from `{report.base[:12]}`"),
        ("Repository", f"`{report.repo}`"),
        ("Model", report.model),
        ("Steps", f"{totals.steps:,} in all, {totals.critical_steps:,} on the critical path"),
        (
            "Tokens",
            f"{totals.prompt_tokens:,} in ({totals.cached_percent} % from the cache), "
            f"{totals.completion_tokens:,} out{_lost(totals)}",
        ),
        ("Cost", f"USD {usd(totals.nano_usd)} at {report.price} prices{paid}"),
        ("Time", f"{duration(totals.active_ms)} at work, {duration(totals.wall_ms)} in all"),
        (
            "Runs",
            f"{count(totals.resumes, 'resume')}, {count(totals.retries, 'retry')}, "
            f"{count(totals.merges, 'merge')}, {count(totals.failed_calls, 'failed model call')}",
        ),
        ("Session", f"`{report.id}`, {report.events:,} events"),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {_cell(text)} |" for name, text in lines)]


def _lost(totals: Totals) -> str:
    return f", {totals.lost_tokens:,} reserved for answers nobody heard" if totals.lost_tokens else ""


def _not_done_section(report: Report) -> list[str]:
    if not report.not_done:
        return ["## Not done", "", "Nothing: every assignment was accepted.", ""]
    rows = [f"- `{_line(one.what)}`: {_line(one.why)}" for one in report.not_done]
    return [f"## Not done ({len(rows)})", "", *rows, ""]


def _assignment_section(report: Report) -> list[str]:
    if not report.assignments:
        return ["## Assignments", "", "None was handed out."]
    head = "| Task | Status | Attempts | Steps | Edits | Tokens in (cached) | out | Time |"
    rows = [head, "|---|---|--:|--:|--:|--:|--:|--:|"]
    for one in report.assignments:
        cells = (
            f"`{_line(one.task)}`",
            one.status,
            str(len(one.attempts)),
            str(one.steps),
            str(one.edits),
            f"{one.prompt_tokens:,} ({one.cached_tokens:,})",
            f"{one.completion_tokens:,}",
            duration(one.wall_ms),
        )
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    tried = [line for one in report.assignments for line in _attempt_lines(one)]
    return [
        "## Assignments",
        "",
        *rows,
        *(["", "### Attempts that were not taken", "", *tried] if tried else []),
    ]


def _attempt_lines(row: Row) -> list[str]:
    return [
        f"- `{_line(row.task)}`, attempt {one.number}: {one.outcome}, {_line(one.reason)}"
        for one in row.attempts
        if one.reason
    ]


def _budget_section(report: Report) -> list[str]:
    budget, totals = report.budget, report.totals
    tokens = totals.prompt_tokens + totals.completion_tokens + totals.lost_tokens
    rows = [f"- steps: {totals.steps:,} of {budget.steps:,}"]
    if budget.tokens is not None:
        rows.append(f"- tokens: {tokens:,} of {budget.tokens:,}")
    if budget.nano_usd is not None:
        rows.append(f"- money: USD {usd(totals.nano_usd)} of {usd(budget.nano_usd)}")
    return ["## Budget", "", *rows]


def count(number: int, word: str) -> str:
    """`1 retry`, `2 retries`."""
    plural = f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
    return f"{number:,} {word if number == 1 else plural}"


def duration(ms: int) -> str:
    """`850 ms`, `12.3 s`, `4 min 05 s`, `2 h 07 min`."""
    if ms < 1000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(ms // 1000, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def _line(text: str) -> str:
    """On one line, and without what would end a code span: the words are a model's or a user's."""
    return " ".join(text.split()).replace("`", "'")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
