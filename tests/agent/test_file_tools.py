"""`view`, `create`, `replace`, `grep` and `submit` over real files."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from perilune.agent.profiles import bundled_profile
from perilune.agent.sandbox import Probe, Sandbox
from perilune.agent.tools import REGISTRY, ToolContext, ToolResult, run_tool
from perilune.agent.tools import files as file_tools
from perilune.agent.workspace import DirectoryWorkspace
from perilune.chat.messages import ToolCall

CODE = bundled_profile("code")


async def use(root: Path, name: str, /, **arguments: object) -> ToolResult:
    context = ToolContext(DirectoryWorkspace(root), CODE)
    return await run_tool(ToolCall("id", name, json.dumps(arguments)), context)


def test_every_tool_of_the_code_profile_is_in_the_registry() -> None:
    assert {tool.name for tool in CODE.tools} <= set(REGISTRY)


async def test_tools_of_other_profiles_are_unknown(tmp_path: Path) -> None:
    assert (await use(tmp_path, "search", path="a", name="b")).content == "error: no tool search"


async def test_view_numbers_lines_and_lists_folders(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.py").write_text("".join(f"line {n}\n" for n in range(1, 13)))
    assert (await use(tmp_path, "view", path="d/a.py", first=9, last=10)).content == " 9  line 9\n10  line 10"
    assert (await use(tmp_path, "view", path="d/a.py", first=12, last=99)).content == "12  line 12"
    assert (await use(tmp_path, "view", path=".")).content == "d/a.py"
    assert (await use(tmp_path, "view", path="d/")).content == "d/a.py"
    assert (await use(tmp_path, "view", path="d/a.py", first=13)).content == "error: d/a.py has 12 lines"
    assert (await use(tmp_path, "view", path="gone")).content == "error: no file gone"
    (tmp_path / "empty").write_text("")
    assert (await use(tmp_path, "view", path="empty")).content == "(empty file)"


async def test_long_output_keeps_head_and_tail(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x" * 50_000 + "THE END")
    content = (await use(tmp_path, "view", path="a")).content
    assert len(content) < 30_100
    assert content.endswith("THE END")
    assert re.search(r"\[\.\.\. \d+ characters left out \.\.\.\]", content)


async def test_create_never_overwrites(tmp_path: Path) -> None:
    assert await use(tmp_path, "create", path="n/a.py", content="a\nb\n") == ToolResult(
        "ok, 2 lines", mutated=True
    )
    again = await use(tmp_path, "create", path="n/a.py", content="lost")
    assert (again.ok, again.mutated) == (False, False)
    assert (tmp_path / "n" / "a.py").read_text() == "a\nb\n"
    assert not (await use(tmp_path, "create", path="../a.py", content="")).ok


async def test_replace_is_exact_and_unique(tmp_path: Path) -> None:
    target = tmp_path / "a.py"
    target.write_text("def f():\n    return 1\n\ndef g():\n    return 1\n")
    twice = await use(tmp_path, "replace", path="a.py", old="    return 1", new="    return 2")
    assert twice.content == "error: old occurs 2 times, in lines 2, 5; give more of its surroundings"
    none = await use(tmp_path, "replace", path="a.py", old="def  f():", new="x")
    assert none.content == "error: old does not occur; similar lines:\n1: def f():\n4: def g():"
    assert not (await use(tmp_path, "replace", path="a.py", old="", new="x")).ok
    assert not (await use(tmp_path, "replace", path="a.py", old="f", new="f")).ok
    done = await use(
        tmp_path, "replace", path="a.py", old="g():\n    return 1", new="g():\n    return 2\n    # \\1"
    )
    assert done.mutated
    assert done.content == "ok\n2      return 1\n3  \n4  def g():\n5      return 2\n6      # \\1"
    assert target.read_text() == "def f():\n    return 1\n\ndef g():\n    return 2\n    # \\1\n"


async def test_replace_keeps_windows_line_endings(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\r\ntwo\r\n")
    assert (await use(tmp_path, "replace", path="a", old="one\ntwo", new="1\n2")).ok
    assert (tmp_path / "a").read_bytes() == b"1\r\n2\r\n"


async def test_grep_searches_text_files_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.py").write_text("alpha\nbeta\n")
    (tmp_path / "b.txt").write_text("beta\n")
    (tmp_path / "c.bin").write_bytes(b"beta\0")
    assert (await use(tmp_path, "grep", pattern="^b.ta$")).content == "b.txt:1: beta\nd/a.py:2: beta"
    assert (await use(tmp_path, "grep", pattern="beta", glob="*.py")).content == "d/a.py:2: beta"
    assert (await use(tmp_path, "grep", pattern="beta", path="d")).content == "d/a.py:2: beta"
    assert (await use(tmp_path, "grep", pattern="gamma")).content == "0 hits"
    assert "not a regular expression" in (await use(tmp_path, "grep", pattern="(")).content
    assert not (await use(tmp_path, "grep", pattern="x", path="gone")).ok


async def test_grep_shows_at_most_its_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x\n" * 101)
    assert (await use(tmp_path, "grep", pattern="x")).content.endswith(
        "(the first 100 shown; narrow the pattern)"
    )
    (tmp_path / "a").write_text("x\n" * 100)
    assert (await use(tmp_path, "grep", pattern="x")).content.endswith("a:100: x")


async def test_a_pattern_that_backtracks_for_ever_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_tools, "SEARCH_SECONDS", 0.2)
    (tmp_path / "a").write_text("a" * 5_000 + "!")
    result = await use(tmp_path, "grep", pattern=r"^(a|aa)+$")
    assert "took longer than 0.2 s" in result.content


async def test_submit_and_a_shell_without_a_sandbox(tmp_path: Path) -> None:
    assert (await use(tmp_path, "submit", summary="done")).content == "ok"
    assert (await use(tmp_path, "bash", command="ls")).content == "error: this agent has no shell"


async def test_files_over_the_limit_are_refused(tmp_path: Path) -> None:
    small = msgspec.structs.replace(CODE, limits=msgspec.structs.replace(CODE.limits, file_bytes=10))
    context = ToolContext(DirectoryWorkspace(tmp_path), small)
    call = ToolCall("id", "create", json.dumps({"path": "a", "content": "x" * 11}))
    assert (await run_tool(call, context)).content == "error: a would be larger than 10 bytes"


@pytest.mark.parametrize(
    "arguments",
    [
        '{"path": "\\ud800.py"}',
        '{"path": "%s"}' % ("long" * 100),
        '{"path": "%s"}' % ("d/" * 2_000),
        '{"path": "a\\u0000b"}',
        '{"path": ".", "last": NaN}',
        '{"path": ".", "first": %s}' % ("9" * 5_000),
    ],
)
@pytest.mark.parametrize("name", ["view", "create"])
async def test_what_no_file_system_takes_is_an_error_that_the_model_reads(
    tmp_path: Path, name: str, arguments: str
) -> None:
    if name == "create":
        arguments = arguments[:-1] + ', "content": "x"}'
    result = await run_tool(ToolCall("id", name, arguments), ToolContext(DirectoryWorkspace(tmp_path), CODE))
    assert not result.ok and result.content.startswith("error: ")
    assert not list(tmp_path.iterdir())


async def test_a_pattern_nested_too_deep_is_refused(tmp_path: Path) -> None:
    result = await use(tmp_path, "grep", pattern="(" * 1_500 + ")" * 1_500)
    assert result.content.startswith("error: the pattern is not a regular expression")


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ('{"command": "echo \\u0000"}', "NUL"),
        ('{"command": "echo \\ud800"}', "surrogate"),
        ('{"command": "%s"}' % (": " * 60_000), "longer than"),
        ('{"command": "true", "timeout": NaN}', "not JSON"),
    ],
)
async def test_a_command_that_the_kernel_would_not_take_is_refused(
    tmp_path: Path, arguments: str, refusal: str
) -> None:
    sandbox = Sandbox(Probe("none", False, "not here"), unsandboxed=True)
    context = ToolContext(DirectoryWorkspace(tmp_path), CODE, sandbox)
    result = await run_tool(ToolCall("id", "bash", arguments), context)
    assert not result.ok and refusal in result.content
    endless = await run_tool(
        ToolCall("id", "bash", '{"command": "true", "timeout": %s}' % ("9" * 400)), context
    )
    assert endless.ok
