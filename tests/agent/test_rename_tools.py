"""The exact texts of the rename protocol, over real files."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.agent.binding import resolve
from perilune.agent.loop import start
from perilune.agent.profiles import bundled_profile
from perilune.agent.tools import ToolContext, ToolResult, run_tool
from perilune.agent.tools.rename import hits, replace_in_line, search_text
from perilune.agent.workspace import DirectoryWorkspace
from perilune.chat.messages import ToolCall

RENAME = bundled_profile("rename")


def context(root: Path, *, edits: int = 0, earlier: tuple[ToolCall, ...] = ()) -> ToolContext:
    state = start(RENAME, model="m", system_prompt="Rename foo to bar.", prompt="a.py")
    return ToolContext(
        DirectoryWorkspace(root), RENAME, choices=resolve(RENAME, state.head), edits=edits, earlier=earlier
    )


def tool(name: str, /, **arguments: object) -> ToolCall:
    return ToolCall("id", name, json.dumps(arguments))


async def search(given: ToolContext, path: str = "a.py", name: str = "foo") -> str:
    return (await run_tool(tool("search", path=path, name=name), given)).content


async def replace(given: ToolContext, line: int, old: str = "foo", new: str = "bar") -> ToolResult:
    return await run_tool(tool("replace_word", path="a.py", line=line, old_name=old, new_name=new), given)


async def test_search_shows_three_whole_word_lines_cut_to_sixty_characters(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(f"x = 1\n  foo = {'y' * 80}\nfoo_b\nfoo.foo\nfoo2\n(foo)\nafoo\nfoo\n")
    assert await search(context(tmp_path)) == (
        f"4 hits\n2: foo = {'y' * 54}\n4: foo.foo\n6: (foo)\n(3 of 4 shown)"
    )
    (tmp_path / "a.py").write_text("foo\n")
    assert await search(context(tmp_path)) == "1 hit\n1: foo"
    (tmp_path / "a.py").write_text("fool\n")
    assert await search(context(tmp_path)) == "0 hits"
    (tmp_path / "a.py").write_text("foo\nfoo\nfoo\n")
    assert "shown" not in await search(context(tmp_path))


async def test_search_refusals(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("foo\n")
    (tmp_path / "b.py").write_text("foo\n")
    given = context(tmp_path)
    assert await search(given, path="gone.py") == "error: no file gone.py"
    assert await search(given, path="b.py") == "error: b.py is not in your task"
    assert await search(given, name="fo") == "error: fo is not in your task"
    assert await search(given, path="../a.py") == "error: ../a.py leaves the workspace"


async def test_replace_changes_every_whole_word_of_one_line_and_shows_the_next(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("foo = foo_2 + foo\n\n    # foo\n")
    first = await replace(context(tmp_path), 1)
    assert (first.content, first.ok, first.mutated, first.settled) == (
        "ok, 1 left\n3: # foo",
        True,
        True,
        False,
    )
    last = await replace(context(tmp_path, edits=1), 3)
    assert (last.content, last.mutated, last.settled) == ("ok, 0 left, 2 edits", True, True)
    assert (tmp_path / "a.py").read_text() == "bar = foo_2 + bar\n\n    # bar\n"


async def test_one_edit_is_said_in_the_singular(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("foo\n")
    assert (await replace(context(tmp_path), 1)).content == "ok, 0 left, 1 edit"


async def test_replace_refusals_name_the_next_hit(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x\nfoo = 1\n")
    searched = (tool("search", path="a.py", name="foo"),)
    given = context(tmp_path, earlier=searched)
    for result, text in [
        (await replace(given, 1), "error: no foo in line 1, next 2: foo = 1"),
        (await replace(given, 99), "error: no foo in line 99, next 2: foo = 1"),
        (await replace(given, -1), "error: no foo in line -1, next 2: foo = 1"),
        (await replace(given, 2, new="baz"), "error: baz is not in your task, next 2: foo = 1"),
        (await replace(given, 2, old="fo"), "error: fo is not in your task, next 2: foo = 1"),
        (await replace(given, 1, old="bar", new="foo"), "error: no bar in line 1"),
    ]:
        assert (result.content, result.ok, result.mutated) == (text, False, False)
    assert (tmp_path / "a.py").read_text() == "x\nfoo = 1\n"


async def test_a_syntax_error_is_rolled_back_but_an_already_broken_file_may_be_edited(tmp_path: Path) -> None:
    profile = RENAME
    state = start(profile, model="m", system_prompt="Rename foo to class.", prompt="a.py")
    given = ToolContext(DirectoryWorkspace(tmp_path), profile, choices=resolve(profile, state.head))
    (tmp_path / "a.py").write_text("foo = 1\n")
    result = await replace(given, 1, new="class")
    assert result.content == "error: syntax error, rolled back, next 1: foo = 1"
    assert (tmp_path / "a.py").read_text() == "foo = 1\n"
    (tmp_path / "a.py").write_text("foo = = 1\n")
    assert (await replace(given, 1, new="class")).content == "ok, 0 left, 1 edit"


async def test_line_endings_and_mode_bits_stay(tmp_path: Path) -> None:
    target = tmp_path / "a.py"
    target.write_bytes(b"\xef\xbb\xbffoo\r\nx\x0cfoo\nfoo")
    target.chmod(0o755)
    for line in (1, 2, 3):
        assert (await replace(context(tmp_path), line)).ok
    assert target.read_bytes() == b"\xef\xbb\xbfbar\r\nx\x0cbar\nbar"
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"\0foo", "error: a.py is a binary file"), (b"\xfffoo", "error: a.py is not UTF-8 text")],
)
async def test_files_that_are_not_text_are_refused(tmp_path: Path, data: bytes, text: str) -> None:
    (tmp_path / "a.py").write_bytes(data)
    assert await search(context(tmp_path)) == text


@given(st.lists(st.sampled_from(["foo", "foo_", "bar", " ", "\n", "\r\n", ".", "é", "2"]), max_size=40))
def test_editing_hit_by_hit_is_a_whole_word_replacement(parts: list[str]) -> None:
    """Following the hits that the tool names ends with every whole word renamed, and nothing else."""
    text, edits = "".join(parts), 0
    expected = [line for line, _ in hits(text, "foo")]
    start_text = text
    while found := hits(text, "foo"):
        edit = replace_in_line(text, found[0][0], "foo", "new_name", path="a.txt", edits=edits)
        assert edit.text is not None
        text, edits = edit.text, edits + 1
    assert edits == len(expected)
    assert search_text(text, "foo") == "0 hits"
    import re

    assert text == re.sub(r"(?<!\w)foo(?!\w)", "new_name", start_text)
