"""The snippets of docs/api.md, run against a server."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from api_server import serving, talker

from perilune.backends.scripted import scripted_entry

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.DOTALL)
SAID = (
    "You said: Hello",
    "A greeting is due.",
    "You said: Hello",
    "You said: Hello",
    "You said: dry",
    "# Notes",
)


def test_all_snippets_are_known() -> None:
    assert len(SNIPPETS) == len(SAID)


def run_shell(code: str) -> str:
    return subprocess.run(
        ["bash", "-ec", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def run_python(code: str) -> str:
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, names)
    names["client"].close()
    return said.getvalue()


@pytest.mark.parametrize("number", range(len(SAID)))
async def test_a_snippet_does_what_the_page_says(tmp_path: Path, number: int) -> None:
    language, code = SNIPPETS[number]
    entry = msgspec.structs.replace(scripted_entry(), id="perilune-nano")
    async with serving(tmp_path, talker(entry)) as api:
        code = code.replace("http://127.0.0.1:8642/v1", api.url).replace("plk_...", api.key)
        said = await asyncio.to_thread(run_shell if language == "sh" else run_python, code)
        assert SAID[number] in said
        assert set(api.rows()) == (set() if "files" in code else {"finished"})
