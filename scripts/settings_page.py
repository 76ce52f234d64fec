"""Write docs/settings.md from src/perilune/settings.py, or `--check` that it is what would be written."""

from __future__ import annotations

import ast
import sys
from dataclasses import MISSING, fields
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "settings.md"
INTRODUCTION = """# Settings

One frozen object, read once when a command starts. Later sources win: `HOME/perilune.toml`, then the
environment (`PERILUNE_` and the name in capitals), then flags. An unknown name, a wrong type or a value out
of range is refused with one line that names it. An empty variable counts as not set. In the file, numbers and
`true` or `false` stand without quotes, and a relative path is meant from the file's folder.

This page is written by `python scripts/settings_page.py`; a test compares it with the code.

| Setting | Default | What it does |
|---|---|---|
"""


def main() -> int:
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    same = PAGE.read_text(encoding="utf-8") == text
    print("docs/settings.md is up to date" if same else "run: python scripts/settings_page.py")
    return 0 if same else 1


def page() -> str:
    from perilune.settings import Settings

    said = documentation()
    rows = []
    for one in fields(Settings):
        default = "" if one.default in (MISSING, "", ()) else f"`{str(one.default).lower()}`"
        rows.append(f"| `{one.name}` | {default} | {said[one.name]} |")
    return INTRODUCTION + "\n".join(rows) + "\n"


def documentation() -> dict[str, str]:
    """Setting -> the string under it, on one line. KeyError in `page` when a setting has none."""
    source = (ROOT / "src" / "perilune" / "settings.py").read_text(encoding="utf-8")
    settings = next(
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Settings"
    )
    said = {}
    for field, below in zip(settings.body, settings.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            said[field.target.id] = " ".join(str(below.value.value).split())
    return said


if __name__ == "__main__":
    sys.exit(main())
