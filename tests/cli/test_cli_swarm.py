"""Swarms and the demonstration from the command line, with the scripted model in place of the bundled one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from perilune.backends.base import Backend
from perilune.backends.router import Router
from perilune.backends.scripted import ScriptedBackend, scripted_entry
from perilune.cli import house
from perilune.cli import main as cli
from perilune.settings import Settings
from perilune.store import HomeLock

GOAL = "Rename add to plus in calc."
FILES = {
    "calc/__init__.py": "",
    "calc/adding.py": "def add(a, b):\n    return a + b\n",
    "calc/using.py": "from calc.adding import add\n\n\ndef twice(a):\n    return add(a, a)\n",
    "calc/other.py": "ADDED = 1\n",
    "test_calc.py": (
        "import unittest\nfrom calc.using import twice\n\n\nclass T(unittest.TestCase):\n"
        "    def test_twice(self):\n        self.assertEqual(twice(2), 4)\n"
    ),
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "project"


@pytest.fixture
def repo(project: Path) -> Path:
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "start"]):
        git(project, *command)
    return project


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A HOME of the test's own, whose model is the scripted one and, like nano, renames only."""
    for name in [name for name in os.environ if name.startswith("PERILUNE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PERILUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PERILUNE_PORT", "0")

    async def scripted(settings: Settings) -> Backend:
        entry = msgspec.structs.replace(
            scripted_entry(),
            goals="rename",
            orchestrator_profile="orchestrate-rename",
            subagent_profile="rename",
        )
        return Router([ScriptedBackend(entry=entry)], serve_as=settings.serve_as)

    monkeypatch.setattr(house, "open_model", scripted)
    return tmp_path / "home"


def git(folder: Path, *command: str) -> str:
    identity = ("-c", "user.name=T", "-c", "user.email=t@localhost")
    done = subprocess.run(
        ["git", *identity, *command], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout


def listed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert cli.main(["swarm", "list"]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_swarm_runs_and_leaves_the_working_tree_alone(
    repo: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["swarm", "run", GOAL, "--repo", str(repo), "--yes"]) == 0
    said = capsys.readouterr().out
    session = listed(capsys)[0].split()[0]
    branch = f"perilune/{session}"
    assert f"git -C {repo} merge {branch}" in said and "Complete" in said
    assert git(repo, "status", "--porcelain") == "" and git(repo, "branch", "--show-current") == "main\n"
    assert git(repo, "show", f"{branch}:calc/using.py").count("plus") == 2
    assert (home / "reports" / f"{session}.md").read_text().startswith(f"# {GOAL}")

    assert cli.main(["swarm", "report", session, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["not_done"], found["totals"]["done"]) == ("complete", [], 4)
    assert cli.main(["swarm", "report", session]) == 0
    assert branch in capsys.readouterr().out
    assert cli.main(["swarm", "show", session]) == 0
    assert GOAL in capsys.readouterr().out


def test_a_budget_stops_it_and_a_larger_one_ends_it(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["swarm", "run", GOAL, "--repo", str(repo), "--steps", "5", "--yes"]) == 10
    said = capsys.readouterr()
    session = listed(capsys)[0].split()[0]
    assert f"perilune swarm resume {session}" in said.out
    assert said.err.startswith("perilune: ") and said.err.count("\n") == 1
    assert cli.main(["swarm", "resume", session, "--steps", "500"]) == 0
    assert "complete" in listed(capsys)[0]


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["Paint it blue.", "--yes"], 2, "perilune connect URL"),
        ([GOAL], 2, "--yes, or a --budget"),
        ([GOAL, "--budget", "0.000001"], 2, "--yes, or a --budget"),
        ([GOAL, "--yes", "--repo", "/"], 2, "not a git repository"),
        ([GOAL, "--yes", "--model", "kimi-k9"], 2, "kimi-k9"),
    ],
)
def test_what_cannot_start_says_why_and_spends_nothing(
    flags: list[str], code: int, words: str, repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [] if "--repo" in flags else ["--repo", str(repo)]
    assert cli.main(["swarm", "run", *flags, *where]) == code
    said = capsys.readouterr().err
    assert said.startswith("perilune: ") and words in said and said.count("\n") == 1
    assert listed(capsys) == ['None yet: perilune swarm run "GOAL" --repo DIR']


def test_a_budget_that_covers_the_estimate_is_a_yes(repo: Path) -> None:
    assert cli.main(["swarm", "run", GOAL, "--repo", str(repo), "--budget", "5"]) == 0


def test_a_dirty_repository_is_refused(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repo / "calc" / "using.py").write_text("changed = 1\n")
    assert cli.main(["swarm", "run", GOAL, "--repo", str(repo), "--yes"]) == 2
    assert "uncommitted changes: calc/using.py" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["show", "report", "resume"])
def test_an_unknown_session_is_named(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["swarm", action, "20260101-000000-abcd"]) == 2
    assert "no session 20260101-000000-abcd" in capsys.readouterr().err


def test_a_damaged_journal_is_listed_as_that(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "swarm").mkdir(parents=True)
    (home / "swarm" / "20260101-000000-abcd.db").write_bytes(b"no database" * 1000)
    (line,) = listed(capsys)
    assert line.split()[1:3] == ["damaged", "-"] and "restore it from a backup" in line


def test_two_commands_on_one_home(repo: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with HomeLock(home, "serve"):
        assert cli.main(["swarm", "run", GOAL, "--repo", str(repo), "--yes"]) == 3
    assert f"process {os.getpid()} (perilune serve)" in capsys.readouterr().err


# ---- the demonstration


def demo(project: Path, *flags: str) -> int:
    return cli.main(["demo", "--project", str(project), "--goal", GOAL, *flags])


def test_the_demonstration_shows_all_there_is(
    project: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(project) == 0
    said = capsys.readouterr().out
    assert "API        http://127.0.0.1:" in said and str(home / "keys.json") in said
    assert "+def plus(a, b):" in said and "2 files changed" in said
    assert "Tests      passed on the merged tree: Ran 1 test" in said
    assert "Try next:" in said and "make run FRESH=1" in said
    assert not (project / ".git").exists()


def test_a_second_demonstration_finds_the_first(
    project: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(project) == 0
    session = listed(capsys)[0].split()[0]
    assert demo(project) == 0
    said = capsys.readouterr().out
    assert f"session {session}, complete: nothing is left to do. Anew: make run FRESH=1" in said
    assert "Tests      passed" in said
    assert demo(project, "--fresh") == 0
    assert len(listed(capsys)) == 2
    assert {path.name for path in (home / "demo").iterdir() if path.name[0] != "."} == {
        "project",
        "project-2",
    }


def test_a_stopped_demonstration_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERILUNE_MAX_STEPS", "5")
    assert demo(project) == 10
    session = listed(capsys)[0].split()[0]
    assert demo(project) == 10
    assert f"session {session}, not finished: going on where it was" in capsys.readouterr().out
    assert cli.main(["swarm", "resume", session, "--steps", "500"]) == 0
    assert demo(project) == 0


def test_a_taken_port_is_no_obstacle(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("PERILUNE_PORT", str(port))
        assert demo(project) == 0
    assert f"Port {port} is taken; the next free one is used." in capsys.readouterr().out


def test_a_signal_stops_it_so_that_it_can_go_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = asyncio.Event()

    class Slow(ScriptedBackend):
        async def stream(self, request):  # type: ignore[no-untyped-def]
            started.set()
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)
            yield

    async def slow(settings: Settings) -> Backend:
        entry = msgspec.structs.replace(scripted_entry(), goals="rename")
        return Slow(entry=entry)

    with monkeypatch.context() as patched:
        patched.setattr(house, "open_model", slow)
        assert demo(project) == 130
    assert started.is_set()
    assert "Go on with perilune swarm resume" not in capsys.readouterr().out
    assert demo(project) == 0


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "perilune", "version"], capture_output=True, check=True)
    assert done.stdout.startswith(b"perilune ")
