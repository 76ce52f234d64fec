"""With no network at all: it starts, and the first request is answered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import perilune

ALONE = ["unshare", "--user", "--map-root-user", "--net"]
PROGRAM = Path(__file__).with_name("without_network.py")


def alone() -> bool:
    """Whether this machine lets us make a network namespace."""
    return (
        shutil.which("unshare") is not None
        and not subprocess.run([*ALONE, "true"], check=False, capture_output=True).returncode
    )


@pytest.mark.skipif(not alone(), reason="this machine lets nobody make a network namespace")
def test_it_starts_and_answers_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PERILUNE_")}
    done = subprocess.run(
        [*ALONE, sys.executable, str(PROGRAM), str(tmp_path / "home")],
        env=kept | {"PYTHONPATH": str(Path(perilune.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert not told["reachable"] and told["ended"] == 0
    assert told["answer"]["model"] == "perilune-nano" and told["answer"]["usage"]["completion_tokens"] > 0
