"""`perilune index` and `perilune search`, as users type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perilune.cli.main import main


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "moon.md").write_text("# Moon\n\nPerilune is nearest to it.\n")
    (folder / "data.bin").write_bytes(b"\0\1")
    return folder


def test_index_and_search(tmp_path: Path, notes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path / "home")]
    assert main(["index", str(notes), *home]) == 0
    assert capsys.readouterr().out == (
        "1 added, 0 changed, 0 unchanged, 0 removed; 1 documents in the index\nskipped 1: not text\n"
    )
    assert main(["search", "nearest", "perilune", *home]) == 0
    assert capsys.readouterr().out.startswith("Moon\n  notes/moon.md\n  # Moon Perilune is nearest to it.\n")
    assert main(["index", "--json", *home]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "added": 0,
        "changed": 0,
        "unchanged": 1,
        "removed": 0,
        "skipped": {"not text": 1},
        "documents": 1,
        "folders": [str(notes)],
    }
    assert main(["search", "--json", "--limit", "1", "moon", *home]) == 0
    (hit,) = json.loads(capsys.readouterr().out)
    assert hit["url"] == "notes/moon.md"
    assert main(["index", "--forget", str(notes), *home]) == 0
    assert "1 removed" in capsys.readouterr().out
    assert main(["search", "moon", *home]) == 0
    assert capsys.readouterr().out == "nothing found\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["index"], "nothing is indexed yet"),
        (["index", "/no/such/folder"], "not a folder"),
        (["search", "moon"], "web_search: no web search is set up on this server"),
    ],
)
def test_refusals(
    tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--home", str(tmp_path / "home")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not (tmp_path / "home").exists()
