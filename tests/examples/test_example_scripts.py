"""The scripts in examples/ run as they stand, and stay short."""

from __future__ import annotations

import asyncio
import contextlib
import io
import runpy
import sys
from pathlib import Path

import msgspec
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
sys.path.insert(0, str(Path(__file__).parents[1] / "api"))

import make_project  # noqa: E402
import swarm_in_python  # noqa: E402
from api_server import serving  # noqa: E402

from perilune.backends.base import Backend  # noqa: E402
from perilune.backends.choose import open_backend  # noqa: E402
from perilune.backends.scripted import Call, Reply, ScriptedBackend, scripted_entry, text_of  # noqa: E402
from perilune.chat.messages import Request  # noqa: E402
from perilune.settings import Settings  # noqa: E402
from perilune.swarm.repository import run_git  # noqa: E402


@pytest.mark.parametrize("name", ["chat_with_openai_sdk.py", "swarm_in_python.py"])
def test_examples_are_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 50


def talk(request: Request) -> Reply:
    if request.tools:
        return Call("weather", {"city": "Riga"})
    return f"You said: {text_of(request.messages[-1])}"


async def test_the_chat_example_runs_against_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = msgspec.structs.replace(scripted_entry(), id="perilune-nano")
    async with serving(tmp_path, ScriptedBackend(talk, entry=entry)) as api:
        monkeypatch.setenv("PERILUNE_BASE_URL", api.url)
        monkeypatch.setenv("PERILUNE_API_KEY", api.key)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            await asyncio.to_thread(runpy.run_path, str(EXAMPLES / "chat_with_openai_sdk.py"))
    assert said.getvalue().splitlines() == [
        "perilune-nano: You said: Hello",
        "Streamed: You said: Hello again",
        'It wants to call weather({"city": "Riga"})',
    ]


async def test_the_readme_s_call_is_answered_as_it_says(tmp_path: Path) -> None:
    """By the bundled model itself."""
    readme = (EXAMPLES.parent / "README.md").read_text()
    code = readme.partition("```python\nfrom openai")[2].partition("```")[0]
    told = code.splitlines()[-1].removeprefix("# ")
    backend = await open_backend(Settings(home=tmp_path, threads=1))
    try:
        async with serving(tmp_path / "home", backend) as api:
            code = code.replace("http://127.0.0.1:8642/v1", api.url).replace("plk_...", api.key)
            with contextlib.redirect_stdout(io.StringIO()) as said:
                await asyncio.to_thread(exec, f"from openai{code}", {})
    finally:
        await backend.close()
    assert said.getvalue().strip() == told and "load_config" in told


async def test_the_swarm_example_renames_the_example_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = tmp_path / "project"
    make_project.write_project(repo)
    for args in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "Base"]):
        assert (await run_git(repo, *args)).code == 0

    async def scripted(settings: Settings) -> Backend:
        return ScriptedBackend()

    monkeypatch.setenv("PERILUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(swarm_in_python, "open_backend", scripted)
    assert await swarm_in_python.main(str(repo), make_project.GOAL) == 0
    said = capsys.readouterr().out
    assert "About 60 sub-agents" in said and "**Complete**: 60 of 60 assignments done." in said
    assert (await run_git(repo, "grep", "-qw", "StateVector")).code == 0
    branch = said.partition("branch `")[2].partition("`")[0]
    assert (await run_git(repo, "grep", "-qw", "StateVector", branch)).code == 1
