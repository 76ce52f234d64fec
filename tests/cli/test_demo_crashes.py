"""SIGKILL at random moments, of the command or of anything it started; then it is started again, and again.

`make crash` runs this with the bundled model as well, where the engine is among the victims.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import perilune

SOURCE = Path(perilune.__file__).parents[1]
ROOT = Path(__file__).parents[2]
NANO = SOURCE / "perilune" / "nano_checkpoint" / "config.json"
SCRIPTED = (sys.executable, str(Path(__file__).with_name("scripted_demo.py")))
REAL = (sys.executable, "-m", "perilune")
KILLS = 20
MOST_STARTS = 60
PATIENCE_S = 600


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(SCRIPTED, id="scripted"),
        pytest.param(REAL, id="nano", marks=pytest.mark.skipif(not NANO.exists(), reason="no bundled model")),
    ],
)
def test_killed_twenty_times_it_comes_to_the_same_tree(
    command: tuple[str, ...], seed: int, tmp_path: Path
) -> None:
    project = tmp_path / "example"
    maker = [sys.executable, str(ROOT / "examples" / "make_project.py"), str(project), "--files", "60"]
    subprocess.run(maker, check=True, capture_output=True)
    began = time.monotonic()
    assert start(command, project, tmp_path / "whole").wait(PATIENCE_S) == 0
    seconds = time.monotonic() - began
    whole = result(command, tmp_path / "whole")

    kills = kill_around(command, project, tmp_path / "killed", random.Random(seed), seconds)
    assert kills == KILLS
    killed = result(command, tmp_path / "killed")
    assert killed["tree"] == whole["tree"]
    assert (killed["status"], killed["not_done"]) == (whole["status"], whole["not_done"])
    totals = killed["totals"]
    assert totals["assignments"] == whole["totals"]["assignments"]
    assert totals["merges"] == whole["totals"]["merges"] == killed["commits"]
    assert totals["steps"] <= killed["budget"]["steps"]


def kill_around(
    command: tuple[str, ...], project: Path, home: Path, chance: random.Random, seconds: float
) -> int:
    """Start, kill, start again, until the session has ended; how many were killed."""
    kills = 0
    for _ in range(MOST_STARTS):
        running = start(command, project, home)
        while kills < KILLS and running.poll() is None:
            time.sleep(chance.uniform(0.1, 2.4) * seconds / KILLS)
            victims = [running.pid, *descendants(running.pid)]
            victim = running.pid if chance.random() < 0.5 else chance.choice(victims)
            if running.poll() is None and kill(victim):
                kills += 1
            if victim == running.pid:
                break
        if kills < KILLS or running.returncode is not None:
            running.wait(PATIENCE_S)
            continue
        if running.wait(PATIENCE_S) == 0:
            return kills
    raise AssertionError(f"not at its end after {MOST_STARTS} starts")


def start(command: tuple[str, ...], project: Path, home: Path) -> subprocess.Popen[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PERILUNE_")}
    with (home.parent / f"{home.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "demo", "--once", "--project", str(project), "--home", str(home), "--port", "0"],
            env=kept | {"PYTHONPATH": str(SOURCE)},
            stdout=log,
            stderr=log,
        )


def descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found, pending = [], [pid]
    while pending:
        children = parents.get(pending.pop(), [])
        found += children
        pending += children
    return found


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def result(command: tuple[str, ...], home: Path) -> dict[str, object]:
    """The report of the only session, with what git says about its branch."""
    (journal,) = (home / "swarm").glob("*.db")
    asked = [*command, "swarm", "report", journal.stem, "--json", "--home", str(home)]
    done = subprocess.run(
        asked, env=os.environ | {"PYTHONPATH": str(SOURCE)}, capture_output=True, check=True
    )
    report = json.loads(done.stdout)
    git = ["git", "-C", report["repo"]]
    tree = subprocess.run(
        [*git, "rev-parse", f"{report['branch']}^{{tree}}"], capture_output=True, check=True
    )
    count = ["rev-list", "--count", "--no-merges", f"{report['base']}..{report['branch']}"]
    commits = subprocess.run([*git, *count], capture_output=True, check=True)
    return report | {"tree": tree.stdout, "commits": int(commits.stdout)}
