"""The example project: real, passing, the same every time, and truly a job for a whole-word rename."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from perilune.agent.tools.rename import hits, word_pattern
from perilune.swarm.repository import Repository, run_git
from perilune.swarm.verify import check_rename_goal, parse_rename_goal

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import make_project  # noqa: E402


def passes(folder: Path) -> bool:
    done = subprocess.run([sys.executable, "-B", "-m", "unittest", "-q"], cwd=folder, capture_output=True)
    return done.returncode == 0 and b"Ran " in done.stderr


def rename_all(folder: Path) -> None:
    goal = parse_rename_goal(make_project.GOAL)
    for file in (folder / goal.directory).rglob("*.py"):
        file.write_text(word_pattern(goal.old).sub(goal.new, file.read_text()))


@pytest.mark.parametrize("files", [60, 61, 62, 300])
def test_its_tests_pass_before_and_after_the_rename(tmp_path: Path, files: int) -> None:
    folder = tmp_path / "project"
    make_project.write_project(folder, files)
    assert passes(folder)
    rename_all(folder)
    assert passes(folder)
    assert not [path for path in folder.rglob("*") if path.is_file() and "StateVector" in path.read_text()]


@pytest.mark.parametrize("files", [60, 63, 91, 92, 300, make_project.MOST])
def test_every_file_uses_the_name_a_few_times(files: int) -> None:
    project = make_project.project_files(files)
    modules = {path: content.decode() for path, content in project.items() if path.endswith(".py")}
    assert len(modules) == files
    for path, text in modules.items():
        assert path.startswith("orrery/") and len(path) <= 40
        assert 1 <= len(hits(text, "StateVector")) <= 6, path


def test_the_same_call_writes_the_same_bytes() -> None:
    assert make_project.project_files(300) == make_project.project_files(300)
    assert make_project.project_files(60).items() <= make_project.project_files(300).items()


async def test_the_goal_is_accepted_for_all_files(tmp_path: Path) -> None:
    make_project.write_project(tmp_path / "project", 60)
    for args in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "Example"]):
        assert (await run_git(tmp_path / "project", *args)).code == 0
    repository = await Repository.open(tmp_path / "project")
    scope = await check_rename_goal(parse_rename_goal(make_project.GOAL), repository)
    assert scope.files == scope.affected
    assert len(scope.files) == 60


@pytest.mark.parametrize(("args", "message"), [(["--files", "59"], "from 60 to"), ([], "not empty")])
def test_wrong_use_is_one_line(tmp_path: Path, args: list[str], message: str) -> None:
    (tmp_path / "taken").write_text("")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "make_project.py"), str(tmp_path), *args],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
