"""Hostile images and videos, each in a process of its own: refused by name or read, and cheap either way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.chat.hostile_media import CASES

ROOT = Path(__file__).resolve().parents[2]
SAID = {
    "100 megapixels": "is 10000 by 10000 pixels, at most 50,000,000",
    "1 by 10,000": "is 1 by 10000 pixels, one side more than 200 times",
    "49 megapixels": "",
    "zTXt bomb": "or its head is damaged",
    "iTXt bomb": "or its head is damaged",
    "iCCP bomb": "or its head is damaged",
    "zTXt bomb behind": "Decompressed data too large",
    "iCCP bomb behind": "Decompressed data too large",
    "many iCCP": "far more parts",
    "more pixels than its size": "",
    "JPEG of many scans": "far more parts",
    "JPEG of many parts": "far more parts",
    "GIF of many parts": "far more parts",
    "endless GIF": "",
    "endless APNG": "",
    "AVI, huge by its head": "is 20000 by 20000 pixels, at most 16,777,216",
    "AVI, huge by its frames": "no size, or more than 16,777,216 pixels",
    "MP4, huge by its head": "is 60000 by 60000 pixels, at most 16,777,216",
    "MP4, huge by its frames": "no size, or more than 16,777,216 pixels",
    "MP4, huge by a wrong head": "",
    "frames larger than the head": "cannot be decoded",
    "packets packed again": "unpack to far more than the file has",
    "a codec that unpacks": "is in the codec png that is not read",
    "frames of many scans": "scans in all, too much to decode",
    "MP4 without frames": "holds no video stream",
    "Matroska without frames": "cannot be read: End of file",
    "AVI without frames": "the video has no frames",
    "MP4 as AVI": "cannot be read: Invalid data",
    "AVI as MP4": "cannot be read: Invalid data",
    "MP4 as Matroska": "cannot be read: Invalid data",
}
"""Nothing: it is read, as the image or video that it is."""
USUAL_MIB = 40
MIB = {"49 megapixels": 350}
"""A pixel takes five bytes, and the patches."""
SECONDS = 8
"""Of processor time; on this side of it lie seconds, on the other minutes."""


@pytest.fixture(scope="module")
def told() -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.chat.hostile_media"],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(CASES), done.stderr
    return {line["case"]: line for line in lines}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_by_name_or_read_and_never_dear(case: str, told: dict[str, dict[str, Any]]) -> None:
    line = told[case]
    if SAID[case]:
        assert SAID[case] in line["message"]
        assert line["field"] == "messages[2].content[0]" and line["mend"]
    else:
        assert not line["message"]
    assert line["mib"] < MIB.get(case, USUAL_MIB)
    assert line["seconds"] < SECONDS
