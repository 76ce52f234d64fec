"""The tools of the `rename` profile: find a name in a file, rename it in one line.

The texts are the protocol the bundled model is trained on; `search_text` and `replace_in_line` are pure,
so its trainer and these tools share one definition. A hit is a line that holds the name as a whole word:
no identifier character (letter, digit, `_`) beside it.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perilune.agent.binding import Violation, violation
from perilune.agent.calls import arguments_of
from perilune.agent.tools.context import ToolContext, ToolResult, failed
from perilune.agent.workspace import PathRefused, read_text, write_text
from perilune.chat.messages import ToolCall

SHOWN_HITS = 3
SHOWN_CHARACTERS = 60

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


@dataclass(frozen=True)
class Edit:
    """What a replacement in one line came to. `text` is the new file, or None where nothing changed."""

    content: str
    text: str | None = None
    left: int = 0
    """Hit lines that remain."""


def word_pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")


def hits(text: str, name: str) -> list[tuple[int, str]]:
    """(line number from 1, shown text) of every line that holds the whole word."""
    pattern = word_pattern(name)
    return [
        (number, line.strip()[:SHOWN_CHARACTERS])
        for number, line in enumerate(_LINE.findall(text), start=1)
        if pattern.search(line)
    ]


def search_text(text: str, name: str) -> str:
    """The answer of `search` over this file."""
    found = hits(text, name)
    if not found:
        return "0 hits"
    lines = [f"{number}: {shown}" for number, shown in found[:SHOWN_HITS]]
    if len(found) > SHOWN_HITS:
        lines.append(f"({SHOWN_HITS} of {len(found)} shown)")
    return "\n".join([f"{len(found)} hit{'s' if len(found) != 1 else ''}", *lines])


def replace_in_line(text: str, line: int, old: str, new: str, *, path: str, edits: int) -> Edit:
    """The answer of `replace_word`: every whole-word `old` of the one line becomes `new`.

    `edits` counts the edits of this context so far; a `.py` file that parsed before must parse after,
    else nothing changes."""
    lines = _LINE.findall(text)
    pattern = word_pattern(old)
    current = lines[line - 1] if 1 <= line <= len(lines) else ""
    changed = pattern.sub(lambda _: new, current)
    if changed == current:
        return Edit(f"error: no {old} in line {line}{next_hit(text, old)}")
    replaced = "".join([*lines[: line - 1], changed, *lines[line:]])
    if path.endswith(".py") and not parses(replaced) and parses(text):
        return Edit(f"error: syntax error, rolled back{next_hit(text, old)}")
    left = hits(replaced, old)
    if left:
        number, shown = left[0]
        return Edit(f"ok, {len(left)} left\n{number}: {shown}", replaced, len(left))
    count = edits + 1
    return Edit(f"ok, 0 left, {count} edit{'s' if count != 1 else ''}", replaced)


def next_hit(text: str, name: str) -> str:
    """`, next L: text` for the first hit, or nothing."""
    found = hits(text, name)
    return f", next {found[0][0]}: {found[0][1]}" if found else ""


def parses(text: str) -> bool:
    return syntax_problem(text) is None


def syntax_problem(text: str) -> str | None:
    """None when the text is Python, else what is wrong and where."""
    try:
        with warnings.catch_warnings():
            # An invalid escape in the user's file is not ours to report.
            warnings.simplefilter("ignore")
            ast.parse(text.removeprefix("\ufeff"))
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return str(error) or type(error).__name__
    return None


async def search(arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
    path, name = str(arguments["path"]), str(arguments["name"])
    read = _read(path, context)
    if isinstance(read, ToolResult):
        return read
    wrong = _not_bound("search", arguments, context)
    if wrong is not None:
        return failed(f"{wrong.value} is not in your task")
    return ToolResult(search_text(read, name))


async def replace_word(arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
    path, old, new = (str(arguments[key]) for key in ("path", "old_name", "new_name"))
    read = _read(path, context)
    if isinstance(read, ToolResult):
        return read
    wrong = _not_bound("replace_word", arguments, context)
    if wrong is not None:
        return failed(f"{wrong.value} is not in your task{_hint(wrong, read, old, context)}")
    edit = replace_in_line(read, int(arguments["line"]), old, new, path=path, edits=context.edits)
    if edit.text is None:
        return ToolResult(edit.content, ok=False)
    try:
        write_text(context.workspace, path, edit.text, context.limits.file_bytes)
    except PathRefused as error:
        return failed(str(error))
    return ToolResult(edit.content, mutated=True, settled=edit.left == 0)


def _read(path: str, context: ToolContext) -> str | ToolResult:
    """The file's text, or the tool error."""
    try:
        return read_text(context.workspace, path, context.limits.file_bytes)
    except PathRefused as error:
        return failed(str(error))


def _not_bound(tool: str, arguments: Mapping[str, Any], context: ToolContext) -> Violation | None:
    """The first value that was not copied from the agent's task."""
    if context.choices is None:
        return None
    return violation(context.profile, context.choices, tool, arguments)


def _hint(wrong: Violation, text: str, old: str, context: ToolContext) -> str:
    """Where to go on after a name that is not in the task; nothing for a file that is not."""
    if wrong.argument == "path":
        return ""
    name = _searched(context.earlier) if wrong.argument == "old_name" else old
    return next_hit(text, name) if name else ""


def _searched(earlier: Sequence[ToolCall]) -> str | None:
    """The name last searched in this context: what the agent is renaming, when it mistypes it."""
    for call in reversed(earlier):
        if call.name == "search":
            return str(arguments_of(call)["name"])
    return None
