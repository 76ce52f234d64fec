"""A little of every fuzz target in each test run, the same each time; and the fuzzer itself.

`make fuzz FUZZ_SECONDS=600` goes on for longer. What it finds becomes a case of the room it was found in,
or of tests/fuzz/test_found.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from tests.fuzz import run
from tests.fuzz.chat_targets import ROOT
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

INPUTS = {"config": 300, "index": 60, "shard": 120, "tokenizer": 120, "media": 400, "parser": 200}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", TARGETS)
def test_damage_is_read_or_refused(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    target.make(tmp_path)
    random, seeds = Random(name), target.seeds()
    for data in (*seeds[:20], *(run.damage(target, random, seeds) for _ in range(INPUTS[name]))):
        target.check(tmp_path, data)


def test_the_command_knows_every_target() -> None:
    assert set(run.TARGETS) == set(TARGETS) == set(INPUTS)


def _run(target: Target, monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    monkeypatch.setattr(run, "_target", lambda _: target)
    monkeypatch.setattr(run, "bound_memory", lambda: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    return run.main(["config", "--seconds", "0.2", "--seed", "1", "--findings", str(folder)])


def test_a_finding_is_saved_and_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(_: Path, data: bytes) -> None:
        assert data != b"ab"

    target = Target("made", lambda: [b"a"], lambda _, data: data + b"b", check)
    assert _run(target, monkeypatch, tmp_path) == 1
    (saved,) = tmp_path.iterdir()
    assert saved.read_bytes() == b"ab" and str(saved) in capsys.readouterr().err
    good = Target("made", lambda: [b"a"], lambda _, data: data, lambda *_: None)
    assert _run(good, monkeypatch, tmp_path) == 0
    assert '"by": "random damage"' in capsys.readouterr().out


def test_memory_above_the_bound_is_a_finding() -> None:
    code = "from tests.fuzz.run import bound_memory; bound_memory(64 << 20); bytes(1 << 30)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and "MemoryError" in done.stderr
