"""On a terminal the demonstration stays up until Ctrl-C, drawing in place while it works."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import perilune

SOURCE = Path(perilune.__file__).parents[1]
PROGRAM = Path(__file__).with_name("scripted_demo.py")
PATIENCE_S = 90


def test_it_stays_up_until_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "example" / "calc").mkdir(parents=True)
    (tmp_path / "example" / "calc" / "add.py").write_text("def add(a, b):\n    return a + b\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PERILUNE_")}
    ours, theirs = pty.openpty()
    places = ["--project", str(tmp_path / "example"), "--home", str(tmp_path / "home"), "--port", "0"]
    running = subprocess.Popen(
        [sys.executable, str(PROGRAM), "demo", "--goal", "Rename add to plus in calc.", *places],
        env=kept | {"PYTHONPATH": str(SOURCE), "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        said = read_until(ours, "until Ctrl-C.")
        assert "\x1b[?25h" in said, "the cursor is shown again"
        url = re.search(r"API\s+(http://\S+)/v1", said)
        assert url is not None
        with urllib.request.urlopen(f"{url[1]}/healthz", timeout=10) as answer:
            assert answer.status == 200
        os.kill(running.pid, signal.SIGINT)
        assert running.wait(timeout=20) == 0
        logs = [path for path in (tmp_path / "home").rglob("*-wal") if path.stat().st_size]
        assert logs == [], "every store was closed and is whole in its one file"
    finally:
        running.kill()
        running.wait()
        os.close(ours)


def read_until(terminal: int, words: str) -> str:
    said, end = "", time.monotonic() + PATIENCE_S
    while words not in said:
        assert time.monotonic() < end, said
        try:
            said += os.read(terminal, 65536).decode(errors="replace")
        except OSError as error:
            raise AssertionError(f"it ended early: {said}") from error
    return said
