"""The shape of the code: how long functions and files are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "scripts", "nano", "benchmarks", "examples")
LONGEST_FUNCTION = 60
LONGEST_EXAMPLE = 50
MARKER = "# long:"
"""A longer function says why: `# long: reason` on its first line or the line above."""


def sources() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def long_functions(text: str) -> Iterator[tuple[str, int]]:
    """Name and length of functions that are too long and give no reason."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        start = min([node.lineno, *(one.lineno for one in node.decorator_list)])
        head = lines[max(start - 2, 0) : node.body[0].lineno]
        if length > LONGEST_FUNCTION and not any(MARKER in line for line in head):
            yield node.name, length


def test_no_function_is_longer_than_its_reason() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name} has {length} lines"
        for path in sources()
        for name, length in long_functions(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_no_error_is_swallowed_in_silence() -> None:
    """`except ...: pass` hides what went wrong; contextlib.suppress names what is expected."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and [type(one) for one in node.body] == [ast.Pass]:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_every_file_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources()
        if (tree := ast.parse(path.read_text(encoding="utf-8"))).body and ast.get_docstring(tree) is None
        if "examples" not in path.relative_to(ROOT).parts[:1]
    ]
    assert silent == []


@pytest.mark.parametrize("marked", [True, False])
def test_the_length_rule_catches(marked: bool) -> None:
    body = "\n".join(f"    x{n} = {n}" for n in range(LONGEST_FUNCTION))
    text = f"{MARKER + ' a table' if marked else ''}\ndef f():\n{body}\n"
    assert list(long_functions(text)) == ([] if marked else [("f", LONGEST_FUNCTION + 1)])
