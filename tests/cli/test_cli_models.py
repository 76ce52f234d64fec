"""Connecting a model and asking it, over a real server: another Perilune on loopback."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from perilune.accounts.accounts import Accounts
from perilune.api.serve import Server
from perilune.backends.scripted import Reply, ScriptedBackend, text_of, usage_of
from perilune.chat.messages import Completion, Message, Request
from perilune.cli import main as cli
from perilune.settings import Settings


class Endpoint:
    """A server in a thread of its own, so that a command's event loop is left alone."""

    def __init__(self, home: Path) -> None:
        self.url = self.key = ""
        self._home = home
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        settings = Settings.load(self._home, {"port": 0}, {})
        self._stop = asyncio.Event()
        with Accounts.open(self._home, settings) as accounts:
            self.key = accounts.create_key("client")
            server = Server(settings, ScriptedBackend(echo), accounts)
            await server.start()
            self.url = server.base_url
            self._ready.set()
            await self._stop.wait()
            await server.stop(grace_s=1)

    def __enter__(self) -> Endpoint:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


def echo(request: Request) -> Reply:
    thought = "What was said?" if request.thinking else None
    answer = Message(
        role="assistant", content=f"You said: {text_of(request.messages[-1])}", reasoning=thought
    )
    return Completion(message=answer, finish_reason="stop", usage=usage_of(request, answer))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("PERILUNE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PERILUNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    with Endpoint(tmp_path / "elsewhere") as running:
        yield running


def test_a_model_is_tried_saved_and_asked(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{endpoint.key}\n"))
    assert cli.main(["connect", endpoint.url, "--key", "-"]) == 0
    said = capsys.readouterr().out
    assert f"Connected  scripted at {endpoint.url}" in said and "8,192 tokens of context" in said
    settings = Settings.load()
    assert (settings.model_url, settings.model_name) == (endpoint.url, "scripted")
    assert settings.model_context == 8192 and endpoint.key not in said

    assert cli.main(["chat", "hello"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("You said: hello") and "What was said?" in said.err
    assert cli.main(["chat", "hello", "--no-thinking"]) == 0
    assert "What was said?" not in capsys.readouterr().err

    assert cli.main(["connect", "--none"]) == 0
    assert Settings.load().model_url == ""


def test_a_server_is_asked_as_its_client(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERILUNE_BASE_URL", endpoint.url)
    monkeypatch.setenv("PERILUNE_API_KEY", endpoint.key)
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert cli.main(["chat", "-"]) == 0
    assert capsys.readouterr().out.startswith("You said: from a pipe")
    monkeypatch.setenv("PERILUNE_API_KEY", "plk_wrong")
    assert cli.main(["chat", "hello"]) == 6
    said = capsys.readouterr().err
    assert said.startswith("perilune: api_key: the model endpoint refused the key: ")
    assert "(correct PERILUNE_API_KEY" in said
    assert not home.exists()


@pytest.mark.parametrize(
    ("key", "name", "code", "words"),
    [("plk_wrong", "", 6, "key"), ("", "kimi-k9", 2, "kimi-k9")],
)
def test_an_endpoint_that_refuses_is_not_saved(
    key: str, name: str, code: int, words: str, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["connect", endpoint.url, "--key", key or endpoint.key, "--name", name]) == code
    said = capsys.readouterr().err
    assert said.startswith("perilune: ") and words in said and said.count("\n") == 1
    assert Settings.load().model_url == ""


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["connect", "http://127.0.0.1:9/v1"]) == 6
    assert "http://127.0.0.1:9/v1" in capsys.readouterr().err


def test_an_empty_message_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", " "]) == 2
    assert "message: is empty (say something)" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["http://x/v1", "--none"]])
def test_url_or_none(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["connect", *flags])
    assert "give either URL or --none" in capsys.readouterr().err
