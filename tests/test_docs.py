"""What the documents say is true: links lead somewhere, commands exist, the map names the rooms there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from perilune.cli.main import build_parser
from test_imports import LAW, PACKAGE

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "nano").glob("*.md")])
STRUCTURE = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    dead = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert dead == []


def commands() -> list[str]:
    """Every `perilune ...` line of the code blocks of README and docs."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            lines = re.sub(r"\\\n\s*", "", block).splitlines()
            found += [line for line in lines if re.match(r"perilune [a-z]+( |$)", line)]
    return found


@pytest.mark.parametrize("line", commands())
def test_every_command_shown_is_one_that_parses(line: str) -> None:
    build_parser().parse_args(shlex.split(line, comments=True)[1:])


def test_commands_are_shown() -> None:
    assert len(commands()) >= 3


def test_make_targets_shown_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        shown = set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert shown and shown <= targets, page.name


def test_the_map_s_rooms_are_the_law_s() -> None:
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|.*\| ([^|]+) \|$", STRUCTURE, re.MULTILINE)
    assert {room for room, _ in rows} == {room for room in LAW if not room.startswith("__")}
    for room, allowed in rows:
        named = {name.partition(".")[0] for name in re.findall(r"[a-z.]+", allowed.partition(";")[0])}
        if room != "cli":
            assert named - {"nothing"} == LAW[room], room


def test_the_map_names_files_that_are_there() -> None:
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_*-]+)+(?:\.\w+)?|[a-z]+\.py)`", STRUCTURE))
    assert len(named) > 15
    missing = [name for name in named if not any(any(base.glob(name)) for base in (PACKAGE, ROOT))]
    assert missing == []
