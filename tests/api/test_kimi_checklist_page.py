"""docs/kimi-api-checklist.md says of every statement whether it is held, and what is held has its test."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kimi-api-checklist.md").read_text(encoding="utf-8")
STATEMENTS = range(1, 76)


def rows() -> dict[int, bool]:
    """Statement -> whether the page calls it held."""
    found: dict[int, bool] = {}
    for numbers, verdict in re.findall(r"^\| ([\d, to]+) \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE):
        first, _, last = numbers.partition(" to ")
        named = range(int(first), int(last) + 1) if last else [int(one) for one in numbers.split(", ")]
        held = verdict.startswith("held")
        assert held != verdict.startswith("not built"), verdict
        assert not set(named) & found.keys()
        found |= dict.fromkeys(named, held)
    return found


def bearing() -> set[int]:
    files = (ROOT / "tests" / "api").glob("test_kimi_checklist*.py")
    return {
        int(one) for file in files for one in re.findall(r"^async def test_(\d{3})_", file.read_text(), re.M)
    }


def test_every_statement_has_its_row() -> None:
    assert sorted(rows()) == list(STATEMENTS)


def test_what_is_held_is_tested_and_nothing_else() -> None:
    assert {number for number, held in rows().items() if held} == bearing()
