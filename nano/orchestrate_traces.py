"""Traces of the rename orchestrator: its oracle, a scripted swarm as its world."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from nano.names import TRAINED_VARIANTS, Pool, directory, files_of, name, new_name, word
from nano.rename_traces import MODEL, edits, instructions
from nano.traces import Answer, Oracle, Trace, World, run
from perilune.agent.binding import NOT_A_PATH
from perilune.agent.calls import arguments_of
from perilune.agent.loop import AgentState, RunTools, ToolRecord, start
from perilune.agent.profiles import bundled_profile
from perilune.chat.messages import Message, ToolCall

AGENT = "renamer"
PAGE = bundled_profile("orchestrate-rename").page_size

_GOAL = re.compile(r"Rename (\S+) to (\S+) in (\S+)\.")
_NEXT = re.compile(r"^next page: (\d+)$", re.MULTILINE)
_STATUS = re.compile(r"^(\d+) of (\d+) files done")


def goal(old: str, new: str, folder: str) -> str:
    return f"Rename {old} to {new} in {folder}."


# ---- what a perfect orchestrator answers


def oracle(messages: Sequence[Message]) -> Answer:
    """The right next step, from these messages alone."""
    found = _GOAL.fullmatch(str(messages[0].content))
    assert found is not None
    old, new, folder = found[1], found[2], found[3]
    last = _last_round(messages)
    create = Answer(calls=(("create_subagent", {"name": AGENT, "system_prompt": instructions(old, new)}),))
    if last is None:
        return create
    name_of, text, assigned = last
    if name_of == "create_subagent":
        return create if text.startswith("error:") else _list(folder, 1)
    if text.startswith("error:"):
        same = [m for m in messages if m.role == "tool" and m.content == text]
        return Answer(text="Failed: no directory.") if len(same) > 1 else _list(folder, 1)
    paths = [line for line in text.splitlines() if not NOT_A_PATH.fullmatch(line)]
    if paths and not assigned:
        return Answer(calls=tuple(("assign_task", {"agent": AGENT, "prompt": path}) for path in paths))
    if following := _NEXT.search(text):
        return _list(folder, int(following[1]))
    state = _STATUS.match(text)
    if name_of == "status" and state and not paths:
        return Answer(text=f"Finished: {state[1]} of {state[2]} files done.")
    return Answer(calls=(("status", {}),))


def _list(folder: str, page: int) -> Answer:
    return Answer(calls=(("list_files", {"dir": folder, "page": page}),))


def _last_round(messages: Sequence[Message]) -> tuple[str, str, bool] | None:
    """(tool, answer) that began the running round, and whether its paths were assigned since."""
    texts = {message.tool_call_id: str(message.content) for message in messages if message.role == "tool"}
    calls: list[ToolCall] = [call for message in messages for call in message.tool_calls]
    for place in reversed(range(len(calls))):
        if calls[place].name != "assign_task":
            return calls[place].name, texts[calls[place].id], place < len(calls) - 1
    return None


# ---- the swarm as a script


class Swarm:
    """Answers for a directory of `total` files, of which those asked for are made up on the way."""

    def __init__(self, folder: str, total: int, pool: Pool, rng: random.Random) -> None:
        self.folder, self.total = folder, total
        self.pages = max(1, -(-total // PAGE))
        self._pool, self._rng = pool, rng
        self._left = -1
        """Files that the next status calls not done; -1 until the first status."""

    def page(self, number: int) -> str:
        count = max(0, min(PAGE, self.total - (number - 1) * PAGE))
        files = files_of(self.folder, count, self._pool, self._rng)
        return "\n".join([*files, f"next page: {number + 1}" if number < self.pages else "last page"])

    def status(self) -> str:
        rng = self._rng
        given_up = rng.randint(1, min(9, self.total)) if self.total and rng.random() < 0.08 else 0
        if self._left < 0 and self.total:
            most = min(self.total, PAGE if rng.random() < 0.8 else 30)
            self._left = rng.choice((0, rng.randint(1, most), rng.randint(1, min(most, 3))))
        else:
            self._left = 0 if rng.random() < 0.7 else min(max(self._left, 0), rng.randint(0, PAGE))
        left = max(self._left, given_up)
        if left <= 0:
            return f"{self.total} of {self.total} files done"
        shown = 0 if given_up and self._left <= 0 else min(left, PAGE)
        files = files_of(self.folder, shown, self._pool, rng)
        return "\n".join([f"{self.total - left} of {self.total} files done, {left} not done:", *files])

    def result(self) -> str:
        rng = self._rng
        if rng.random() < 0.93:
            return f"Done: {edits(rng.choice((0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 6)))}."
        reason = " ".join(word(self._pool, rng) for _ in range(rng.randint(1, 6)))
        known = ("syntax error", "no file", "loop", "cannot edit", "step limit", "context full")
        return f"Failed: {rng.choice((*known, reason))}."


def world_of(swarm: Swarm, *, errors: int = 0) -> World:
    """The swarm's answers; the first `errors` listings fail."""
    left = errors

    def world(action: RunTools, state: AgentState) -> Sequence[ToolRecord]:
        nonlocal left
        records = []
        for call in action.calls:
            if call.name == "list_files" and left:
                left -= 1
                text = f"error: no directory {arguments_of(call)['dir']}"
            else:
                text = _answer(swarm, call)
            records.append(ToolRecord(call.id, text, ok=not text.startswith("error:")))
        return records

    return world


def _answer(swarm: Swarm, call: ToolCall) -> str:
    match call.name:
        case "create_subagent":
            return "ok"
        case "list_files":
            return swarm.page(int(arguments_of(call)["page"]))
        case "status":
            return swarm.status()
        case _:
            return swarm.result()


# ---- traces


def _state(pool: Pool, rng: random.Random) -> tuple[AgentState, str]:
    old, folder = name(pool, rng), directory(pool, rng)
    text = goal(old, new_name(old, pool, rng, TRAINED_VARIANTS), folder)
    return start(bundled_profile("orchestrate-rename"), model=MODEL, prompt=text), folder


def opening(pool: Pool, rng: random.Random) -> list[Trace]:
    """The goal's words told apart: create the sub-agent, list page 1; short."""
    state, folder = _state(pool, rng)
    swarm = Swarm(folder, rng.randint(1, 300), pool, rng)
    return list(run(state, oracle, world_of(swarm, errors=rng.choice((0,) * 19 + (1, 2))), most_steps=2))


def round_of(pool: Pool, rng: random.Random) -> list[Trace]:
    """One page from its listing to the call that follows it, at any page of a run."""
    state, folder = _state(pool, rng)
    swarm = Swarm(folder, rng.choice((rng.randint(1, 40), rng.randint(1, 300))), pool, rng)
    page = 1 if rng.random() < 0.25 else rng.randint(1, swarm.pages)
    if rng.random() < 0.25:
        page = swarm.pages
    jump = Answer(calls=(("list_files", {"dir": folder, "page": page}),), trained=page == 1)
    return list(run(state, _second(jump), world_of(swarm), most_steps=4))


def ending(pool: Pool, rng: random.Random) -> list[Trace]:
    """From `status` to the end: what is not done is assigned again."""
    state, folder = _state(pool, rng)
    total = rng.choice((0, rng.randint(1, 20), rng.randint(1, 320), rng.randint(1, 320), rng.randint(1, 320)))
    jump = Answer(calls=(("status", {}),), trained=False)
    return list(run(state, _second(jump), world_of(Swarm(folder, total, pool, rng)), most_steps=7))


def _second(jump: Answer) -> Oracle:
    """The oracle, but the answer after the sub-agent's creation is this one."""

    def answers(messages: Sequence[Message]) -> Answer:
        results = sum(message.role == "tool" for message in messages)
        return jump if results == 1 else oracle(messages)

    return answers
