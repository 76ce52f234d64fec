"""The script of a rename swarm: both roles of the bundled model's protocol, played without a fault.

    orchestrator   create_subagent, then per page: list_files, assign_task for each path; then status, and
                   assign_task for what it lists, until nothing is left; `Finished: D of T files done.`
    sub-agent      search, replace_word on the hit that the last answer shows, ...; `Done: N edits.`

Which role a request is for shows in its tools. The tool texts are those of `agent/tools/rename.py` and of
the swarm's primitives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from perilune.backends.scripted import Call, Reply, Rule, text_of
from perilune.chat.messages import Message, Request, ToolCall

GOAL = re.compile(r"Rename (?:the \w+ )?(\w+) to (\w+)")
PLACE = re.compile(r" in (?:the )?(?:directory |folder )?(\S+)")
DONE = re.compile(r"^(\d+ of \d+ files done)", re.MULTILINE)
NEXT_PAGE = re.compile(r"^next page: (\d+)$", re.MULTILINE)
NOT_A_PATH = re.compile(r"next page: \d+|last page|error: .*|\d+ of \d+ files done.*|ok")
HIT = re.compile(r"(?:^|next )(\d+): ", re.MULTILINE)
EDITS = re.compile(r"^ok, 0 left, (\d+ edits?)")
HARD_ERRORS = {"error: no file": "no file", "error: syntax error": "syntax error"}

AGENT = "renamer"
CALLS_PER_ANSWER = 8
"""What the profile `orchestrate-rename` allows."""


@dataclass(frozen=True)
class Exchange:
    """A tool call and what came back for it."""

    call: ToolCall
    result: str

    @property
    def failed(self) -> bool:
        return self.result.startswith("error:")

    def argument(self, name: str) -> object:
        try:
            return msgspec.json.decode(self.call.arguments).get(name)
        except msgspec.DecodeError:  # a call that was broken on its way, and refused
            return None


def orchestrator(request: Request) -> Reply | None:
    """The next answer of the orchestrator; None for a request that is not one of its."""
    if not _offers(request, "create_subagent", "list_files", "assign_task", "status"):
        return None
    goal = _first_text(request, "user")
    names = GOAL.search(goal)
    place = PLACE.search(goal, names.end()) if names else None
    if names is None or place is None:
        return "Failed: the goal is not `Rename OLD to NEW in DIR.`"
    past = exchanges(request.messages)
    created = [one for one in past if one.call.name == "create_subagent"]
    if not created:
        return Call("create_subagent", {"name": AGENT, "system_prompt": f"{names[0]}."})
    if created[-1].failed:
        return f"Failed: {created[-1].result.removeprefix('error: ')}."
    return _next_in_round(past, str(created[-1].argument("name")), place[1].rstrip(".,:;"))


def _next_in_round(past: Sequence[Exchange], agent: str, folder: str) -> Reply:
    """A round is one list of paths (a page, or what status says is not done) and its assignments."""
    starts = [index for index, one in enumerate(past) if one.call.name in ("list_files", "status")]
    if not starts:
        return Call("list_files", {"dir": folder, "page": 1})
    head, rest = past[starts[-1]], past[starts[-1] + 1 :]
    assigned = [one for one in rest if one.call.name == "assign_task"]
    if head.failed:
        return f"Failed: {head.result.removeprefix('error: ')}."
    given = {one.argument("prompt") for one in assigned}
    todo = [path for path in paths_of(head.result) if path not in given]
    if todo:
        return [Call("assign_task", {"agent": agent, "prompt": path}) for path in todo[:CALLS_PER_ANSWER]]
    if head.call.name == "list_files":
        page = NEXT_PAGE.search(head.result)
        return Call("list_files", {"dir": folder, "page": int(page[1])}) if page else Call("status")
    # To go on after refusals alone would ask for the same files for ever.
    if assigned and not all(one.failed for one in assigned):
        return Call("status")
    done = DONE.search(head.result)
    return f"Finished: {done[1]}." if done else f"Failed: {head.result}"


def subagent(request: Request) -> Reply | None:
    """The next answer of a sub-agent; None for a request that is not one of its."""
    if not _offers(request, "search", "replace_word"):
        return None
    names = GOAL.search(_first_text(request, "system") or _first_text(request, "user"))
    if names is None:
        return "Failed: no rename in the instructions."
    old, new = names[1], names[2]
    path = _first_text(request, "user").split()[0]
    find = Call("search", {"path": path, "name": old})
    past = exchanges(request.messages)
    if not past:
        return find
    last = past[-1]
    if edits := EDITS.match(last.result):
        return f"Done: {edits[1]}."
    if reason := _gives_up(past):
        return f"Failed: {reason}."
    if hit := HIT.search(last.result):
        return Call("replace_word", {"path": path, "line": int(hit[1]), "old_name": old, "new_name": new})
    if last.result == "0 hits":
        edited = sum(one.call.name == "replace_word" and not one.failed for one in past)
        return f"Done: {edited} edit{'' if edited == 1 else 's'}."
    return find


RULES: tuple[Rule, ...] = (orchestrator, subagent)


def exchanges(messages: Sequence[Message]) -> list[Exchange]:
    """The answered calls of a conversation, in order."""
    calls = {call.id: call for message in messages for call in message.tool_calls}
    return [
        Exchange(calls[message.tool_call_id], text_of(message))
        for message in messages
        if message.role == "tool" and message.tool_call_id in calls
    ]


def paths_of(listing: str) -> list[str]:
    """The paths that a `list_files` or `status` answer shows."""
    lines = dict.fromkeys(line.strip() for line in listing.splitlines())
    return [line for line in lines if line and not NOT_A_PATH.fullmatch(line)]


def _gives_up(past: Sequence[Exchange]) -> str | None:
    """Why, when the last two answers are the same error that no further try mends."""
    for start, reason in HARD_ERRORS.items():
        if len(past) > 1 and all(one.result.startswith(start) for one in past[-2:]):
            return reason
    return None


def _offers(request: Request, *names: str) -> bool:
    return {*names} <= {tool.name for tool in request.tools}


def _first_text(request: Request, role: str) -> str:
    return next((text_of(message) for message in request.messages if message.role == role), "")
