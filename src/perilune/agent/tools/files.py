"""`view`, `create`, `replace`, `grep`: files of the workspace, by exact text."""

from __future__ import annotations

import asyncio
import difflib
import fnmatch
import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import regex

from perilune.agent.tools.context import ToolContext, ToolResult, failed
from perilune.agent.workspace import PathRefused, read_text, write_text

CONTEXT_LINES = 2
SHOWN_COLUMNS = 500
CANDIDATES = 3
SEARCH_SECONDS = 5.0
"""A pattern that backtracks for ever is stopped, not waited for."""


async def view(arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
    """A file with line numbers, `first` to `last` if given; or the files below a folder."""
    path = str(arguments["path"])
    try:
        if _is_folder(path, context):
            return ToolResult(_capped("\n".join(context.workspace.list_files(path)) or "(no files)", context))
        text = read_text(context.workspace, path, context.limits.file_bytes)
    except PathRefused as error:
        return failed(str(error))
    lines = text.splitlines()
    first = max(int(arguments.get("first") or 1), 1)
    last = min(int(arguments.get("last") or len(lines)), len(lines))
    if lines and first > len(lines):
        return failed(f"{path} has {len(lines)} lines")
    return ToolResult(_capped(_numbered(lines, first, last) or "(empty file)", context))


async def create(arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
    """A new file; an existing one is never overwritten."""
    path, content = str(arguments["path"]), str(arguments["content"])
    try:
        if context.workspace.exists(path):
            return failed(f"{path} exists; use replace to change it")
        write_text(context.workspace, path, content, context.limits.file_bytes)
    except PathRefused as error:
        return failed(str(error))
    return ToolResult(f"ok, {len(content.splitlines())} lines", mutated=True)


async def replace(arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
    """Replace text that occurs exactly once."""
    path, old, new = (str(arguments[key]) for key in ("path", "old", "new"))
    try:
        text = read_text(context.workspace, path, context.limits.file_bytes)
        if "\r\n" in text and "\r" not in old:
            old, new = old.replace("\n", "\r\n"), new.replace("\n", "\r\n")
        refused = _cannot_replace(text, old, new)
        if refused is not None:
            return failed(refused)
        changed = text.replace(old, new, 1)
        write_text(context.workspace, path, changed, context.limits.file_bytes)
    except PathRefused as error:
        return failed(str(error))
    at = text[: text.index(old)].count("\n") + 1
    lines = changed.splitlines()
    last = min(at + new.count("\n") + CONTEXT_LINES, len(lines))
    return ToolResult(
        _capped("ok\n" + _numbered(lines, max(at - CONTEXT_LINES, 1), last), context), mutated=True
    )


async def grep(arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
    """Lines that match a regular expression, as `PATH:LINE: text`."""
    try:
        pattern = regex.compile(str(arguments["pattern"]))
    except (regex.error, RecursionError) as error:
        return failed(f"the pattern is not a regular expression: {error}")
    glob = str(arguments.get("glob") or "*")
    try:
        files = context.workspace.list_files(str(arguments.get("path") or ""))
        # In a thread, with the interpreter lock released: one slow pattern must not stop other agents.
        found = await asyncio.to_thread(_hits, pattern, [f for f in files if _selected(f, glob)], context)
    except PathRefused as error:
        return failed(str(error))
    except TimeoutError:
        return failed(f"the pattern took longer than {SEARCH_SECONDS:g} s; use a simpler one")
    return ToolResult(_capped("\n".join(found) or "0 hits", context))


def _hits(pattern: regex.Pattern[str], files: list[str], context: ToolContext) -> list[str]:
    limit = context.limits.grep_hits
    found = list(itertools.islice(_matches(pattern, files, context), limit + 1))
    return [*found[:limit], f"(the first {limit} shown; narrow the pattern)"] if len(found) > limit else found


def _matches(pattern: regex.Pattern[str], files: list[str], context: ToolContext) -> Iterator[str]:
    deadline = time.monotonic() + SEARCH_SECONDS
    for path in files:
        try:
            text = read_text(context.workspace, path, context.limits.file_bytes)
        except PathRefused:
            continue  # binary or too large: not text to search
        for number, line in enumerate(text.splitlines(), start=1):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if pattern.search(line, timeout=left, concurrent=True):
                yield f"{path}:{number}: {line[:SHOWN_COLUMNS]}"


def _selected(path: str, glob: str) -> bool:
    return fnmatch.fnmatch(path, glob) or fnmatch.fnmatch(path.rsplit("/", 1)[-1], glob)


def _cannot_replace(text: str, old: str, new: str) -> str | None:
    """Why this replacement is refused, in words that teach the next try."""
    if not old:
        return "old is empty"
    if old == new:
        return "old and new are the same"
    count = text.count(old)
    if count == 1:
        return None
    if count > 1:
        starts: list[str] = []
        at = text.find(old)
        while at >= 0 and len(starts) < 10:
            starts.append(str(text[:at].count("\n") + 1))
            at = text.find(old, at + 1)
        return f"old occurs {count} times, in lines {', '.join(starts)}; give more of its surroundings"
    return "old does not occur" + _nearest(text, old)


def _nearest(text: str, old: str) -> str:
    lines = text.splitlines()
    wanted = next((line for line in old.splitlines() if line.strip()), "")
    close = difflib.get_close_matches(wanted, lines[:5_000], n=CANDIDATES, cutoff=0.6)
    shown = [f"{lines.index(line) + 1}: {line[:SHOWN_COLUMNS]}" for line in close]
    return "; similar lines:\n" + "\n".join(shown) if shown else ""


def _is_folder(path: str, context: ToolContext) -> bool:
    if path.rstrip("/") in ("", "."):
        return True
    if context.workspace.exists(path.rstrip("/")):
        return False
    try:
        context.workspace.list_files(path)
    except PathRefused:
        return False
    return True


def _numbered(lines: list[str], first: int, last: int) -> str:
    width = len(str(last))
    return "\n".join(f"{number:>{width}}  {lines[number - 1]}" for number in range(first, last + 1))


def _capped(text: str, context: ToolContext) -> str:
    cap = context.limits.output_characters
    if len(text) <= cap:
        return text
    head, tail = cap * 6 // 10, cap * 4 // 10
    return f"{text[:head]}\n[... {len(text) - head - tail} characters left out ...]\n{text[-tail:]}"
