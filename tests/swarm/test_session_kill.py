"""The real thing: the process and its git and shell children are killed, at any moment, again and again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from session_parts import Bench, files_at, task_commits

from perilune.swarm.journal import JournalReader
from perilune.swarm.session import Plan, replay
from perilune.swarm.state import SessionState

PROGRAM = Path(__file__).with_name("run_until_killed.py")
COUNT = 10
FILES = {
    f"src/m{number:02d}.py": "".join(
        f"def f{line}(load_config):\n    return load_config\n" for line in range(1 + number % 3)
    )
    for number in range(COUNT)
}


def state_of(bench: Bench, plan: Plan) -> SessionState:
    reader = JournalReader(bench.journal(plan))
    try:
        return replay(reader)
    finally:
        reader.close()


def events_so_far(bench: Bench, plan: Plan) -> int:
    try:
        with closing(sqlite3.connect(f"file:{bench.journal(plan)}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT coalesce(max(seq), 0) FROM event").fetchone()[0])
    except sqlite3.Error:  # the file is being made
        return 0


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), "0.01"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def killed_and_restarted(folder: Path, kills: int, seed: int) -> None:
    bench = Bench(folder, files=FILES)
    plan = asyncio.run(bench.plan(tokens=1_000_000))
    (folder / "plan.json").write_bytes(msgspec.json.encode(plan.started))
    chance = random.Random(seed)
    for _ in range(kills):
        running = start(folder)
        goal = events_so_far(bench, plan) + chance.randint(1, 60)
        while running.poll() is None and events_so_far(bench, plan) < goal:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.02)
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
    last = start(folder)
    told, _ = last.communicate()
    assert last.returncode == 0, told
    state = state_of(bench, plan)
    assert (state.status, state.not_done) == ("complete", ())
    assert files_at(bench.repo, state.tip) == {
        path: text.replace("load_config", "read_config") for path, text in FILES.items()
    }
    assert task_commits(bench.repo, plan.started.base, state.tip) == [
        f"a{number:04d}" for number in range(1, COUNT + 1)
    ]
    assert state.merges == COUNT
    assert 0 < state.resumes <= kills
    assert not bench.journal(plan).with_suffix("").exists()


def test_a_session_killed_three_times_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    killed_and_restarted(tmp_path, 3, seed=1)


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(5))
def test_a_session_killed_twenty_times_ends_as_if_nothing_had_happened(tmp_path: Path, seed: int) -> None:
    killed_and_restarted(tmp_path, 20, seed=seed + 10)
