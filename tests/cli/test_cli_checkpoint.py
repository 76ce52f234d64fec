"""perilune inspect and perilune checkpoint, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from perilune.chat.tokenizer import Tokenizer
from perilune.cli.main import main
from perilune.model.headers import INDEX_NAME

ROOT = Path(__file__).parents[2]


def make(folder: Path, *more: str) -> None:
    assert main(["checkpoint", "make", str(folder), *more]) == 0


def test_make_inspect_verify_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "a", "--shard-gb", "0.0001", "--set", "num_hidden_layers=2")
    assert "experts INT4" in capsys.readouterr().out
    assert Tokenizer.load(tmp_path / "a").vocab_size == 277
    assert main(["inspect", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert "2 layers (1 dense)" in said and "Whole         yes" in said
    assert main(["checkpoint", "verify", str(tmp_path / "a"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert main(["checkpoint", "convert", str(tmp_path / "a"), str(tmp_path / "b"), "--experts", "bf16"]) == 0
    assert main(["inspect", str(tmp_path / "b"), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert seen["ok"] and seen["experts_stored"] == "BF16" and seen["problems"] == []


def test_problems_are_listed_and_the_exit_code_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a")
    index = json.loads((tmp_path / "a" / INDEX_NAME).read_text())
    for name in [name for name in index["weight_map"] if ".experts.7." in name]:
        del index["weight_map"][name]
    index["weight_map"]["\u202eodd\ud800"] = "model-00001-of-000001.safetensors"
    (tmp_path / "a" / INDEX_NAME).write_text(json.dumps(index))
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "a")]) == 5
    said = capsys.readouterr()
    assert "experts.7.gate_proj.weight_packed: config.json implies it" in said.out
    assert "and 8 more (--json lists all)" in said.out and r"\u202eodd\ud800" in said.out
    assert said.err.count("\n") == 1 and "19 missing" in said.err
    assert main(["checkpoint", "verify", str(tmp_path / "a")]) == 5
    assert "faults" in capsys.readouterr().err


def test_a_narrower_text_model_takes_its_vision_tower_along(tmp_path: Path) -> None:
    assert main(["checkpoint", "make", str(tmp_path / "a"), "--set", "hidden_size=32"]) == 0
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["vision_config"]["text_hidden_size"] == config["text_config"]["hidden_size"] == 32
    assert main(["inspect", str(tmp_path / "a")]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shape", "huge"], "'huge' is neither a file nor one of"),
        (["--set", "hidden=3"], "'hidden' is not a field"),
        (["--set", "hidden_size"], "is not a JSON value"),
        (["--set", "hidden_size=-3"], "hidden_size: is -3"),
        (["--set", "n_routed_experts=1"], "num_experts_per_tok"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoint", "make", str(tmp_path / "a"), *arguments]) in (2, 5)
    line = capsys.readouterr().err
    assert words in line and line.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_a_shape_is_taken_from_a_folder_with_its_tokenizer(tmp_path: Path) -> None:
    make(tmp_path / "a", "--no-vision")
    make(tmp_path / "b", "--shape", str(tmp_path / "a"), "--experts", "bf16", "--no-hashes")
    assert Tokenizer.load(tmp_path / "b").vocab_size == 277
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert "vision_config" not in config and "quantization_config" not in config["text_config"]


def test_inspect_needs_no_torch(tmp_path: Path) -> None:
    make(tmp_path / "a")
    program = (
        "import sys\n"
        "sys.modules.update(torch=None, numpy=None, safetensors=None)\n"
        "from perilune.cli.main import main\n"
        f"sys.exit(main(['inspect', {str(tmp_path / 'a')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "") and "Whole         yes" in done.stdout


def test_the_full_size_layer_program_runs_in_small() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "full_size_layer.py"), "--quick", "--json"],
        env={"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["experts"] == 8 and figures["peak_rss_mb"] < 1500
