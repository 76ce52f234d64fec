"""The command line's edge: one line for every mistake, and the exit code that goes with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import perilune
from perilune.cli import main as cli
from perilune.cli.flags import dollars, whole
from perilune.errors import BackendAuth, GoalRefused, HomeLocked, PeriluneError
from perilune.settings import Settings
from perilune.store import HomeLock

SOURCE = Path(perilune.__file__).parents[1]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PERILUNE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PERILUNE_HOME", str(tmp_path / "home"))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("perilune: ") and said.err.count("\n") == 1, said
    return said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["swam"], "invalid choice: 'swam'"),
        (["doctor", "--jsn"], "--jsn; did you mean --json? (see: perilune doctor --help)"),
        (["keys", "budget", "4", "--budget=1"], "(see: perilune keys budget --help)"),
        (["doctor", "--js"], "--js"),
        (["version", "now"], "now"),
    ],
)
def test_a_wrong_command_gets_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    line = one_line(capsys)
    assert words in line and "--help" in line


@pytest.mark.parametrize(
    "error",
    [
        GoalRefused("not that", field="goal", mend="connect a model"),
        HomeLocked("in use"),
        BackendAuth("no\nkey"),
    ],
)
def test_an_error_becomes_one_line_and_its_exit_code(
    error: PeriluneError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_raising(error, monkeypatch) == error.exit_code
    assert one_line(capsys) == f"perilune: {' '.join(str(error).split())}\n"


def test_a_missing_engine_is_named_with_its_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_raising(ModuleNotFoundError("No module named 'torch'", name="torch.nn"), monkeypatch) == 1
    assert "pip install 'perilune[engine]'" in one_line(capsys)


def test_another_missing_module_is_our_fault_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModuleNotFoundError):
        run_raising(ModuleNotFoundError("No module named 'perilune.x'", name="perilune.x"), monkeypatch)


def test_an_interrupt_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_raising(KeyboardInterrupt(), monkeypatch) == 130
    assert one_line(capsys) == "perilune: stopped\n"


@pytest.mark.parametrize("command", [["inspect"], ["checkpoint", "verify"], ["serve", "--checkpoint"]])
def test_a_path_that_no_system_looks_for(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, "x" * 300]) == 2
    line = one_line(capsys)
    assert line.startswith("perilune: xxx") and "File name too long" in line and "give a path" in line


def run_raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail(_: Namespace) -> int:
        raise error

    monkeypatch.setattr(cli, "print_version", fail)
    return cli.main(["version"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == f"perilune {perilune.__version__}\n"


@pytest.mark.parametrize("arguments", [["version"], ["--help"], ["doctor", "--help"]])
def test_a_reader_that_left_is_no_error(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "perilune", *arguments],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert done.stderr == b""


def test_amounts_and_counts() -> None:
    assert (dollars("1.50"), dollars("$0.000000001"), whole("3")) == (1_500_000_000, 1, 3)


# ---- doctor


def report(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, dict[str, str]]]:
    code = cli.main(["doctor", "--json", *flags])
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] == (code == 0)
    return code, {check["name"]: check for check in said["checks"]}


def test_doctor_finds_what_this_machine_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERILUNE_MODEL_URL", "http://127.0.0.1:9/v1")
    code, checks = report(capsys)
    assert code == 0, checks
    assert list(checks) == ["Python", "CPU", "memory", "git", "sandbox", "engine", "model", "disk", "home"]
    assert checks["model"]["detail"].endswith("http://127.0.0.1:9/v1")


def test_doctor_fails_with_the_mend(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, checks = report(capsys, "--checkpoint", str(tmp_path / "none"))
    assert code == 1
    assert checks["git"]["state"] == "fail" and "git 2.38" in checks["git"]["mend"]
    assert checks["model"]["state"] == "fail" and "perilune connect" in checks["model"]["mend"]


def test_doctor_sees_a_damaged_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "perilune.json").write_text('{"id": "x", "content_hash": "00"}')
    _, checks = report(capsys, "--checkpoint", str(tmp_path))
    assert checks["model"]["state"] == "fail" and "does not match" in checks["model"]["detail"]


def test_doctor_names_the_holder_of_home(capsys: pytest.CaptureFixture[str]) -> None:
    with HomeLock(Settings.load().home, "serve") as lock:
        lock.announce("http://127.0.0.1:1/v1")
        _, checks = report(capsys)
    assert f"process {os.getpid()} (perilune serve) at http://127.0.0.1:1/v1" in checks["home"]["detail"]
