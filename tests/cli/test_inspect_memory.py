"""A few bytes of config.json or a large index: what `perilune inspect` says and takes stays within bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perilune.model.headers import INDEX_NAME
from perilune.model.shapes import SHAPES

ROOT = Path(__file__).parents[2]
TENSORS_OF_AN_EXPERT = 9
FILE = "model-00001-of-000001.safetensors"


PROGRAM = r"""
import re, sys
from pathlib import Path
from perilune.cli.main import main
code = main(sys.argv[2:])
# Not getrusage: that counts the process this one was started from.
Path(sys.argv[1]).write_text(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""


def run(folder: Path, *flags: str) -> tuple[int, str, int, int]:
    """Exit code, what is said on standard error, bytes of output, peak of resident memory in MiB."""
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        code = subprocess.call(
            [sys.executable, "-c", PROGRAM, str(folder / "peak"), "inspect", str(folder), *flags],
            env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
            stdout=out,
            stderr=err,
        )
    peak = int((folder / "peak").read_text()) >> 10
    return code, (folder / "err").read_text(), (folder / "out").stat().st_size, peak


def write(folder: Path, weight_map: dict[str, str], **text: int) -> None:
    document: dict[str, Any] = SHAPES["tiny"]()
    document["text_config"].update(text)
    (folder / "config.json").write_text(json.dumps(document))
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


def without_experts(folder: Path, layers: int, experts: int) -> None:
    """An index of nothing, for a config that implies `layers` times `experts`."""
    write(folder, {}, num_hidden_layers=layers + 1, n_routed_experts=experts)


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
def test_experts_that_are_not_there(flags: tuple[str, ...], tmp_path: Path) -> None:
    without_experts(tmp_path, layers=5, experts=2000)
    code, said, size, peak = run(tmp_path, *flags)
    assert code == 5 and said.count("\n") == 1 and "missing" in said
    assert peak < 80
    if flags:
        problems = json.loads((tmp_path / "out").read_text())["problems"]
        assert (
            len({problem["name"] for problem in problems}) == len(problems) > 5 * 2000 * TENSORS_OF_AN_EXPERT
        )
    else:
        assert size < 5000


def test_an_index_of_many_names(tmp_path: Path) -> None:
    many = {f"model.layers.{number // 1000}.mlp.{number}.x": FILE for number in range(100_000)}
    write(tmp_path, many | {"y" * 1_000_000: FILE, "\u202e\ud800": FILE})
    code, said, size, peak = run(tmp_path)
    assert code == 5 and "100,002 extra" in said and said.count("\n") == 1
    assert size < 10_000 and peak < 120


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
def test_as_much_as_a_config_may_imply(flags: tuple[str, ...], tmp_path: Path) -> None:
    without_experts(tmp_path, layers=100, experts=2000)
    code, said, _, peak = run(tmp_path, *flags)
    assert code == 5 and "1,80" in said and peak < 500


@pytest.mark.slow
def test_an_index_of_a_million_names(tmp_path: Path) -> None:
    names = (f"model.layers.{number // 1000}.mlp.experts.{number % 1000}.x" for number in range(1_000_000))
    write(tmp_path, dict.fromkeys(names, FILE))
    code, said, _, peak = run(tmp_path)
    assert code == 5 and "1,000,000 extra" in said and peak < 600
