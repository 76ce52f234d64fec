"""What a model or an endpoint says gives no commands to the terminal it is shown on."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from tests.swarm.session_parts import GOAL, make_repo

from perilune.backends.base import Backend
from perilune.backends.router import Router
from perilune.backends.scripted import Reply, ScriptedBackend
from perilune.chat.messages import Completion, Message, Request, Usage
from perilune.cli import house
from perilune.cli.main import main
from perilune.cli.terminal import harmless
from perilune.errors import BackendRefused
from perilune.settings import Settings
from perilune.swarm.view import plain

HOSTILE = "\x1b]52;c;cm0gLXJm\x07\x9b2J\x1b[2Jrun\r\x7f\x00\tthis\n"
"""Writes the clipboard, clears the screen, overwrites the line."""
SHOWN = "�]52;c;cm0gLXJm��2J�[2Jrun���\tthis\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminals(monkeypatch: pytest.MonkeyPatch) -> tuple[Terminal, Terminal]:
    """In the places of standard output and standard error."""
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    return out, err


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERILUNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def speaking(monkeypatch: pytest.MonkeyPatch, reply: Reply | Exception) -> None:
    def script(request: Request) -> Reply:
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def open_model(settings: Settings) -> Backend:
        return Router([ScriptedBackend(script)])

    monkeypatch.setattr(house, "open_model", open_model)


HOSTILE_ANSWER = Completion(
    message=Message(role="assistant", content=HOSTILE, reasoning=HOSTILE),
    finish_reason="stop",
    usage=Usage(prompt_tokens=1, completion_tokens=1),
)


def test_only_a_terminal_is_spared() -> None:
    assert harmless(HOSTILE, Terminal()) == SHOWN
    assert harmless(HOSTILE, io.StringIO()) == HOSTILE
    assert harmless("Grüße, 月\n\tok", Terminal()) == "Grüße, 月\n\tok"


def test_an_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaking(monkeypatch, HOSTILE_ANSWER)
    out, err = terminals(monkeypatch)
    assert main(["chat", "Hi"]) == 0
    assert out.getvalue() == f"{SHOWN}\n"
    assert err.getvalue().startswith(SHOWN) and "\x1b" not in err.getvalue()


def test_an_answer_into_a_pipe_is_what_the_model_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speaking(monkeypatch, HOSTILE_ANSWER)
    assert main(["chat", "Hi"]) == 0
    assert capsys.readouterr().out == f"{HOSTILE}\n"


def test_an_endpoint_s_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaking(monkeypatch, BackendRefused(f"no: {HOSTILE}"))
    _, err = terminals(monkeypatch)
    assert main(["chat", "Hi"]) == 6
    said = err.getvalue()
    assert said.startswith("perilune: no: ") and said.count("\n") == 1
    assert not set(said) & set("\x1b\x07\x9b\r\x7f\x00")


def test_a_swarm_s_report(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the answers, reasons and file names of a session. The live view has them too: `view.plain`."""
    repo = make_repo(tmp_path / "repo")

    async def open_model(settings: Settings) -> Backend:
        return Router([ScriptedBackend()])

    monkeypatch.setattr(house, "open_model", open_model)
    assert main(["swarm", "run", GOAL, "--repo", str(repo), "--yes"]) == 0
    (journal,) = (home / "swarm").glob("*.db")
    monkeypatch.setattr("perilune.swarm.report.to_markdown", lambda _: HOSTILE)
    out, _ = terminals(monkeypatch)
    assert main(["swarm", "report", journal.stem]) == 0
    assert out.getvalue() == SHOWN


def test_the_live_view() -> None:
    assert plain(f"a{HOSTILE}b") == "a ]52;c;cm0gLXJm  2J [2Jrun    this b"
