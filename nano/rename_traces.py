"""Traces of the rename sub-agent: its oracle, its slips, and the product's tools over a file in memory."""

from __future__ import annotations

import random
import re
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from nano.names import TRAINED_VARIANTS, Pool, damaged, name, new_name, path, word
from nano.traces import Answer, Oracle, Trace, World, run
from perilune.agent.calls import arguments_of
from perilune.agent.loop import AgentState, RunTools, ToolRecord, start
from perilune.agent.profiles import bundled_profile
from perilune.agent.tools import run_tool
from perilune.agent.tools.context import ToolContext
from perilune.agent.tools.rename import next_hit, word_pattern
from perilune.agent.workspace import PathRefused, View
from perilune.chat.messages import Message

MODEL = "perilune-nano"
SLIPS = 0.16
"""Share of traces with a slip or a tool failure in them."""
NO_HITS = 0.07
"""Share of files that do not hold OLD: in a real directory most do not, and they are easy."""

_INSTRUCTIONS = re.compile(r"Rename (\S+) to (\S+)\.")
_HIT = re.compile(r"(?:^|, next )(\d+): ", re.MULTILINE)
_DONE = re.compile(r"ok, 0 left, (\d+) edits?")

Result = TypeVar("Result")


def instructions(old: str, new: str) -> str:
    return f"Rename {old} to {new}."


def edits(count: int) -> str:
    return f"{count} edit" if count == 1 else f"{count} edits"


# ---- what a perfect sub-agent answers


def oracle(messages: Sequence[Message]) -> Answer:
    """The right next step, from these messages alone."""
    found = _INSTRUCTIONS.fullmatch(str(messages[0].content))
    assert found is not None
    old, new, file = found[1], found[2], str(messages[1].content)
    results = [message for message in messages if message.role == "tool"]
    search = Answer(calls=(("search", {"path": file, "name": old}),))
    if not results:
        return search
    last = str(results[-1].content)
    if len(results) > 1 and last.startswith("error:") and results[-2].content == last:
        return Answer(text=f"Failed: {_reason(last)}.")
    asked = [call for message in messages for call in message.tool_calls][-1]
    arguments = arguments_of(asked)
    if asked.name == "search" and not last.startswith("error:") and arguments["name"] != old:
        return search
    if last == "0 hits":
        return Answer(text="Done: 0 edits.")
    if done := _DONE.fullmatch(last):
        return Answer(text=f"Done: {edits(int(done[1]))}.")
    if hit := _HIT.search(last):
        change = {"path": file, "line": int(hit[1]), "old_name": old, "new_name": new}
        return Answer(calls=(("replace_word", change),))
    return search


def _reason(error: str) -> str:
    if error.startswith("error: no file "):
        return "no file"
    return "syntax error" if error.startswith("error: syntax error") else "cannot edit"


# ---- the file in memory


class OneFile:
    """A workspace of one file."""

    def __init__(self, file: str, text: str) -> None:
        self._file, self._data = file, text.encode()

    @property
    def view(self) -> View:
        raise PathRefused("no folder behind a file in memory")

    @property
    def text(self) -> str:
        return self._data.decode()

    def read_bytes(self, path: str) -> bytes:
        if path != self._file:
            raise PathRefused(f"no file {path}")
        return self._data

    def write_bytes(self, path: str, data: bytes) -> None:
        self.read_bytes(path)
        self._data = data

    def exists(self, path: str) -> bool:
        return path == self._file

    def list_files(self, folder: str = "") -> Sequence[str]:
        return (self._file,) if self._file.startswith(folder) else ()


def tools_over(workspace: OneFile) -> World:
    def world(action: RunTools, state: AgentState) -> Sequence[ToolRecord]:
        context = ToolContext.of(action, workspace, state.profile)
        result = finished(run_tool(action.calls[0], context))
        return [ToolRecord(action.calls[0].id, result.content, result.ok, result.mutated, result.settled)]

    return world


def finished(routine: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that never waits: the tools over memory are such."""
    try:
        routine.send(None)
    except StopIteration as stop:
        result: Result = stop.value
        return result
    raise RuntimeError("a tool over memory waited")


# ---- traces


def traces(pool: Pool, rng: random.Random, *, most_hits: int = 9, most_steps: int = 40) -> list[Trace]:
    """All contexts of one rename, some with a slip."""
    old, file, text = _task(pool, rng, most_hits)
    new = new_name(old, pool, rng, TRAINED_VARIANTS)
    if rng.random() < 0.25:
        file = path(pool, rng, near=(old, new))
    if rng.random() < NO_HITS:
        text = "pass\n" * rng.randint(1, 9)
    workspace = OneFile(file, text)
    answers: Oracle = oracle
    world = tools_over(workspace)
    if rng.random() < SLIPS:
        answers, world = _with_slip(world, workspace, old, new, rng)
    state = start(bundled_profile("rename"), model=MODEL, prompt=file, system_prompt=instructions(old, new))
    return list(run(state, answers, world, most_steps=most_steps))


def _task(pool: Pool, rng: random.Random, most_hits: int) -> tuple[str, str, str]:
    """(OLD, path, text): a record of a real file, often under another name, path or line numbers."""
    while True:
        record = rng.choice(pool.records)
        if len(record.hits) <= most_hits:
            break
    old = record.name if rng.random() < 0.45 else name(pool, rng)
    shift = rng.choice((0, 0, 0, rng.randint(0, 99), rng.randint(0, 900), rng.randint(0, 2500)))
    lines: dict[int, str] = {}
    pattern = word_pattern(record.name)
    for number, line in record.hits:
        lines[number + shift] = pattern.sub(old, line)
    if rng.random() < 0.1:
        lines = _with_near_names(lines, old, pool, rng)
    parts = record.path.split("/")
    file = "/".join(parts[-rng.choice((1, 2, 3, 3, 4)) :]) if rng.random() < 0.4 else path(pool, rng)
    return old, file, sparse(lines)


def sparse(lines: dict[int, str]) -> str:
    """A text with these lines at these numbers and nothing between."""
    last = max(lines)
    # The mark keeps it from parsing, as an excerpt would not; whole files parse in evaluation.
    return "".join(f"{lines.get(number, '')}\n" for number in range(1, last + 1)) + "(\n"


def _with_near_names(lines: dict[int, str], old: str, pool: Pool, rng: random.Random) -> dict[int, str]:
    """A hit line that also holds a longer name with OLD inside."""
    number = rng.choice(list(lines))
    near = rng.choice((f"{old}_{word(pool, rng)}", f"{word(pool, rng)}_{old}"))
    return {**lines, number: f"    {near}{rng.choice(('(', ', ', ' = ', '.'))}{lines[number].strip()}"}


def _with_slip(
    world: World, workspace: OneFile, old: str, new: str, rng: random.Random
) -> tuple[Oracle, World]:
    """An oracle that slips once, or a world where something fails."""
    kind = rng.choice(
        ("line", "line", "line", "line", "old", "new", "swap", "search", "path", "gone", "syntax")
    )
    if kind == "gone":
        return oracle, lambda action, _: [_failed(action, f"no file {arguments_of(action.calls[0])['path']}")]
    if kind == "syntax":
        return oracle, _rolled_back(world, workspace, rng.choice((1, 1, 2)))
    at, step = rng.choice((0, 0, 1, 2)), -1

    def slips(messages: Sequence[Message]) -> Answer:
        nonlocal step
        right = oracle(messages)
        if not right.calls:
            return right
        tool, arguments = right.calls[0]
        if (tool == "search") != (kind in ("search", "path")):
            return right
        step += 1
        if step != (0 if tool == "search" else at):
            return right
        wrong = _slipped(kind, dict(arguments), old, new, rng)
        return right if wrong == arguments else Answer(calls=((tool, wrong),), trained=False)

    return slips, world


def _slipped(kind: str, arguments: dict[str, Any], old: str, new: str, rng: random.Random) -> dict[str, Any]:
    match kind:
        case "line":
            line = int(arguments["line"])
            wrong = (line + 1, line - 1, line + 10, line // 10, line * 10 + rng.randint(0, 9))
            return {**arguments, "line": max(1, rng.choice(wrong))}
        case "old":
            return {**arguments, "old_name": rng.choice((damaged(old, rng), new))}
        case "new":
            return {**arguments, "new_name": damaged(new, rng)}
        case "swap":
            return {**arguments, "old_name": new, "new_name": old}
        case "search":
            return {**arguments, "name": rng.choice((damaged(old, rng), new))}
        case _:
            return {**arguments, "path": damaged(str(arguments["path"]), rng)}


def _rolled_back(world: World, workspace: OneFile, times: int) -> World:
    """Edits are refused as breaking the syntax, `times` times."""
    left = times

    def refusing(action: RunTools, state: AgentState) -> Sequence[ToolRecord]:
        nonlocal left
        call = action.calls[0]
        if call.name != "replace_word" or left == 0:
            return world(action, state)
        left -= 1
        hint = next_hit(workspace.text, str(arguments_of(call)["old_name"]))
        return [_failed(action, f"syntax error, rolled back{hint}")]

    return refusing


def _failed(action: RunTools, message: str) -> ToolRecord:
    return ToolRecord(action.calls[0].id, f"error: {message}", ok=False)
