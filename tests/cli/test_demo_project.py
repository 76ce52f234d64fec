"""The demonstration's project: copied once, a clean repository, its tests run in the sandbox."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from perilune.agent.sandbox import Sandbox
from perilune.cli import demo_project
from perilune.errors import InputError
from perilune.swarm.repository import Repository

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import make_project  # noqa: E402


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "example"
    (folder / "calc" / "__pycache__").mkdir(parents=True)
    (folder / "calc" / "__pycache__" / "add.pyc").write_bytes(b"")
    (folder / "calc" / "__init__.py").touch()
    (folder / "calc" / "add.py").write_text("def add(a, b):\n    return a + b\n")
    (folder / "test_calc.py").write_text(
        "import unittest\nfrom calc.add import add\n\n\nclass T(unittest.TestCase):\n"
        "    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\n"
    )
    return folder


def test_the_goal_is_the_example_s() -> None:
    assert demo_project.GOAL == make_project.GOAL


async def test_a_copy_is_a_clean_repository_and_is_kept(project: Path, tmp_path: Path) -> None:
    copy, new = await demo_project.prepare(project, tmp_path / "demo", fresh=False)
    assert new and copy == tmp_path / "demo" / "example"
    repository = await Repository.open(copy)
    files = await repository.tracked_files(repository.base_commit)
    assert files == ("calc/__init__.py", "calc/add.py", "test_calc.py")
    assert await demo_project.prepare(project, tmp_path / "demo", fresh=False) == (copy, False)


async def test_anew_is_another_copy_and_loses_nothing(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    first, _ = await demo_project.prepare(project, folder, fresh=True)
    (first / "mine").write_text("kept")
    second, new = await demo_project.prepare(project, folder, fresh=True)
    assert new and second == folder / "example-2" and (first / "mine").read_text() == "kept"
    assert await demo_project.prepare(project, folder, fresh=False) == (second, False)


async def test_a_start_that_was_killed_is_done_again(project: Path, tmp_path: Path) -> None:
    draft = tmp_path / "demo" / ".example.draft"
    draft.mkdir(parents=True)
    (draft / "half").touch()
    copy, new = await demo_project.prepare(project, tmp_path / "demo", fresh=False)
    assert new and not (copy / "half").exists()
    assert not draft.exists()


async def test_a_project_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"project: .*nowhere is no folder"):
        await demo_project.prepare(tmp_path / "nowhere", tmp_path / "demo", fresh=False)


@pytest.mark.parametrize("broken", [False, True])
async def test_its_tests_run_on_the_commit(project: Path, tmp_path: Path, broken: bool) -> None:
    if broken:
        (project / "calc" / "add.py").write_text("def add(a, b):\n    return a\n")
    copy, _ = await demo_project.prepare(project, tmp_path / "demo", fresh=False)
    repository = await Repository.open(copy)
    found = await demo_project.run_tests(
        repository, repository.base_commit, tmp_path / "checks", Sandbox.probe()
    )
    assert found.passed is not broken
    assert found.summary.startswith("Ran 1 test in ")
    assert found.summary.endswith("FAILED (failures=1)" if broken else "OK")
    await Repository.open(copy)  # and the copy is as clean as before
