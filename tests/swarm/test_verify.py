"""The goal perilune-nano understands, and the judges: right work is accepted, anything else is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perilune.agent.sandbox import ProcessLimits, Sandbox, probe_machine
from perilune.agent.tools.rename import syntax_problem
from perilune.errors import GoalRefused
from perilune.swarm.repository import Repository, run_git
from perilune.swarm.verify import (
    ACCEPTED,
    CommandVerifier,
    RenameGoal,
    RenameVerifier,
    Submission,
    Verdict,
    VerifierChain,
    check_rename_goal,
    parse_rename_goal,
)
from perilune.swarm.workspaces import FileChange, Workspaces

needs_overlay = pytest.mark.skipif(
    not probe_machine().overlay, reason=f"no overlays on this machine: {probe_machine().reason}"
)
GOAL = RenameGoal("Old", "New", "pkg")


# ---- reading the goal


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        ("Rename Old to New in pkg.", GOAL),
        ("  Rename Old to New in pkg/\n", GOAL),
        ("Rename old_1 to _new in src/deep.", RenameGoal("old_1", "_new", "src/deep")),
        ("Rename a to b in .", RenameGoal("a", "b", "")),
        ("Rename a to b in ./x/.", RenameGoal("a", "b", "x")),
    ],
)
def test_the_canonical_goal(goal: str, expected: RenameGoal) -> None:
    assert parse_rename_goal(goal) == expected


def test_the_clause_is_what_agents_are_told() -> None:
    assert GOAL.clause == "Rename Old to New."


@pytest.mark.parametrize(
    "typed", ["Rename Old to New in ./pkg/.", " Rename  Old to New in pkg", GOAL.sentence]
)
def test_the_orchestrator_hears_one_spelling(typed: str) -> None:
    assert parse_rename_goal(typed).sentence == "Rename Old to New in pkg."


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ("Add type hints everywhere.", "understands one goal.*perilune connect URL"),
        ("rename Old to New in pkg.", "understands one goal"),
        ("Rename Old to New.", "understands one goal"),
        ("Rename Old to New in my folder.", "understands one goal"),
        ("Rename 1x to New in pkg.", "1x is not a name"),
        ("Rename Größe to Size in pkg.", "Größe is not a name"),
        ("Rename Old to class in pkg.", "class is a keyword"),
        ("Rename Old to Old in pkg.", "own new name"),
        ("Rename Old to New in ../pkg.", "leaves the workspace"),
        ("Rename Old to New in /etc.", "not a relative path"),
        ("Rename Old to New in .git.", "inside .git"),
    ],
)
def test_other_goals_are_refused_with_the_mend(goal: str, message: str) -> None:
    with pytest.raises(GoalRefused, match=message) as caught:
        parse_rename_goal(goal)
    assert caught.value.field == "goal"
    assert "\n" not in str(caught.value)


# ---- checking it against a repository


async def repository(root: Path, files: dict[str, bytes]) -> Repository:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    for args in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "Base"]):
        assert (await run_git(root, *args)).code == 0
    return await Repository.open(root)


async def test_the_scope_counts_whole_words(tmp_path: Path) -> None:
    files = {
        "pkg/a.py": b"class Old: pass\n",
        "pkg/b.py": b"Older = OldX = _Old = 1\n",
        "pkg/c.txt": b"Old New",
        "pkg/d.py": b"# see m.Old\r\n",
        "other/e.py": b"Old = New = 1\n",
    }
    scope = await check_rename_goal(GOAL, await repository(tmp_path, files))
    assert scope.files == ("pkg/a.py", "pkg/b.py", "pkg/d.py")
    assert scope.affected == ("pkg/a.py", "pkg/d.py")
    assert scope.hits == {"pkg/a.py": 1, "pkg/d.py": 1}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"x.py": b"Old\n"}, "no directory pkg"),
        ({"pkg/x.txt": b"Old\n"}, "pkg holds no .py file"),
        ({"pkg/x.py": b"Older\n"}, "Old is nowhere in pkg"),
        ({"pkg/x.py": b"Old\n", "pkg/y.py": b"New = 1\n"}, r"New is used already in pkg/y\.py"),
        ({"pkg/x.py": b"Old\n", "pkg/y.py": b"# \xff\n"}, r"pkg/y\.py is not UTF-8"),
        ({"pkg/x.py": b"Old\n", "pkg/y.py": b"x = 1\ny = (\n"}, r"pkg/y\.py does not parse: line 2"),
        ({"pkg/x.py": b"Old\n\0"}, r"pkg/x\.py does not parse"),
        ({"pkg/x.py": b"Old\n", "pkg/my x.py": b"y = 1\n"}, r"'pkg/my x\.py' has a space in its path"),
    ],
)
async def test_what_cannot_end_well_is_refused_first(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(GoalRefused, match=message):
        await check_rename_goal(GOAL, await repository(tmp_path, files))


async def test_the_whole_repository_is_refused(tmp_path: Path) -> None:
    repo = await repository(tmp_path, {"x.py": b"Old\n"})
    with pytest.raises(GoalRefused, match="name one of its folders"):
        await check_rename_goal(RenameGoal("Old", "New", ""), repo)


async def test_the_committed_files_count_not_the_folder(tmp_path: Path) -> None:
    repo = await repository(tmp_path, {"pkg/x.py": b"\xef\xbb\xbfOld\n"})  # with a byte order mark
    (tmp_path / "pkg" / "y.py").write_text("New = (\n")
    assert (await check_rename_goal(GOAL, repo)).files == ("pkg/x.py",)


def test_a_warning_is_no_problem_and_a_deep_nest_is() -> None:
    assert syntax_problem("x = '\\d'\n") is None
    assert syntax_problem("x = " + "(" * 5000 + ")" * 5000) is not None


# ---- judging a rename

BEFORE = "class Old:\n    '''An Old, not Older.'''\n"
AFTER = BEFORE.replace("Old:", "New:").replace("An Old,", "An New,")


def submission(tmp_path: Path, *changes: FileChange, prompt: str = "pkg/a.py") -> Submission:
    base = tmp_path / "base"
    (base / "pkg").mkdir(parents=True, exist_ok=True)
    (base / "pkg" / "a.py").write_text(BEFORE)
    (base / "pkg" / "b.py").write_text("Old\n")
    (base / "out.py").write_text("Old\n")
    return Submission("T1", 0, prompt, changes, Workspaces(tmp_path / "spaces", base).open("T1", 0))


def written(text: str | bytes, path: str = "pkg/a.py", mode: str = "100644") -> FileChange:
    return FileChange(path, text.encode() if isinstance(text, str) else text, mode)


async def test_the_right_rename_is_accepted(tmp_path: Path) -> None:
    assert await RenameVerifier(GOAL).verify(submission(tmp_path, written(AFTER))) == ACCEPTED


async def test_a_file_without_the_name_needs_no_change(tmp_path: Path) -> None:
    (tmp_path / "base" / "pkg").mkdir(parents=True)
    (tmp_path / "base" / "pkg" / "free.py").write_text("Older\n")
    handed = submission(tmp_path, prompt="pkg/free.py")
    assert (await RenameVerifier(GOAL).verify(handed)).accepted


@pytest.mark.parametrize(
    ("changes", "prompt", "reason"),
    [
        ([], "pkg/a.py", "Old is left 2 times"),
        ([written(BEFORE.replace("Old:", "New:"))], "pkg/a.py", "Old is left 1 times"),
        ([written(AFTER.replace("Older", "Newer"))], "pkg/a.py", "more than Old changed"),
        ([written(AFTER + "\n")], "pkg/a.py", "more than Old changed"),
        ([written(AFTER.replace("\n", "\r\n"))], "pkg/a.py", "more than Old changed"),
        ([written("class New:\n")], "pkg/a.py", "more than Old changed"),
        ([written(b"\xff")], "pkg/a.py", "not UTF-8"),
        ([FileChange("pkg/a.py", None)], "pkg/a.py", "was deleted"),
        ([written(AFTER, mode="100755")], "pkg/a.py", "another mode"),
        ([written(AFTER), written("New\n", "pkg/b.py")], "pkg/a.py", r"pkg/b\.py is not the assigned"),
        ([written("New\n", "out.py")], "out.py", "is not in pkg"),
        ([], "pkg/none.py", "no file pkg/none.py"),
        ([], "pkg/../../x", "leaves the workspace"),
    ],
)
async def test_anything_else_is_rejected(
    tmp_path: Path, changes: list[FileChange], prompt: str, reason: str
) -> None:
    verdict = await RenameVerifier(GOAL).verify(submission(tmp_path, *changes, prompt=prompt))
    assert not verdict.accepted
    assert re.search(reason, verdict.reason)


async def test_a_rename_that_breaks_the_file_is_rejected(tmp_path: Path) -> None:
    """Whole-word, and yet wrong: the name is also the prefix of a raw string."""
    handed = submission(tmp_path, written("row = 1\nx = row'a'\n", "pkg/p.py"), prompt="pkg/p.py")
    (tmp_path / "base" / "pkg" / "p.py").write_text("r = 1\nx = r'a'\n")
    verdict = await RenameVerifier(RenameGoal("r", "row", "pkg")).verify(handed)
    assert "pkg/p.py does not parse: line 2" in verdict.reason


# ---- judging by a command


@needs_overlay
async def test_a_command_sees_base_plus_changes_and_leaves_nothing(tmp_path: Path) -> None:
    handed = submission(tmp_path, written(AFTER), written("print('hi')\n", "pkg/new.py"))
    spaces = Workspaces(tmp_path / "spaces", tmp_path / "base")
    check = "grep -q 'class New' pkg/a.py && test -f out.py && echo junk > pkg/a.py && python pkg/new.py"
    verifier = CommandVerifier(("sh", "-c", check), Sandbox.probe(), spaces)
    assert (await verifier.verify(handed)).accepted
    assert [entry.name for entry in (tmp_path / "spaces").iterdir()] == ["T1.0"]
    assert (tmp_path / "base" / "pkg" / "a.py").read_text() == BEFORE


@needs_overlay
async def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    handed = submission(tmp_path, written(AFTER))
    spaces = Workspaces(tmp_path / "spaces", tmp_path / "base")
    failing = CommandVerifier(("sh", "-c", "echo 3 tests failed; exit 7"), Sandbox.probe(), spaces)
    verdict = await failing.verify(handed)
    assert not verdict.accepted
    assert verdict.reason.endswith("ended with 7: 3 tests failed")
    slow = CommandVerifier(("sleep", "20"), Sandbox.probe(), spaces, ProcessLimits(seconds=0.3))
    assert "ran out of time" in (await slow.verify(handed)).reason


class Fixed:
    def __init__(self, verdict: Verdict) -> None:
        self.verdict, self.asked = verdict, 0

    async def verify(self, submission: Submission) -> Verdict:
        self.asked += 1
        return self.verdict


async def test_a_chain_stops_at_the_first_rejection(tmp_path: Path) -> None:
    yes, no, never = Fixed(ACCEPTED), Fixed(Verdict(False, "no")), Fixed(ACCEPTED)
    handed = submission(tmp_path)
    assert await VerifierChain([yes, no, never]).verify(handed) == Verdict(False, "no")
    assert (yes.asked, no.asked, never.asked) == (1, 1, 0)
    assert await VerifierChain([yes]).verify(handed) == ACCEPTED
