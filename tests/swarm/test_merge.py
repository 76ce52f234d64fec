"""Merging: exact trees, nothing twice, nothing half done, and the user's own work never touched."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from perilune.errors import MergeConflict, RepositoryError
from perilune.swarm.merge import Merger
from perilune.swarm.repository import Repository, git_environment
from perilune.swarm.workspaces import FileChange

WHEN = 1_700_000_000
BRANCH = "perilune/result"


def git(folder: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=folder, env=git_environment({}), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "pkg").mkdir(parents=True)
    git(root, "init", "-q", "-b", "main")
    for name in "abc":
        (root / "pkg" / f"{name}.py").write_text("".join(f"{name}{line} = 0\n" for line in range(20)))
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "Base")
    return root


async def merger(project: Path, branch: str = BRANCH) -> Merger:
    made = Merger(await Repository.open(project), branch)
    await made.create()
    return made


def edited(name: str, line: int, text: str = "changed") -> FileChange:
    lines = [f"{name}{number} = 0\n" for number in range(20)]
    lines[line] = f"{text}\n"
    return FileChange(f"pkg/{name}.py", "".join(lines).encode())


def snapshot(project: Path) -> str:
    """Working tree, index, HEAD and the user's branch, as one hash."""
    digest = hashlib.sha256()
    for path in sorted(project.rglob("*")):
        inside = path.relative_to(project).as_posix()
        if path.is_file() and (not inside.startswith(".git/") or inside in (".git/index", ".git/HEAD")):
            digest.update(f"{inside} {path.lstat().st_mtime_ns}".encode() + path.read_bytes())
    digest.update(git(project, "rev-parse", "main").encode())
    return digest.hexdigest()


async def test_changes_come_together_and_the_user_sees_nothing(project: Path) -> None:
    (project / "untracked").write_text("mine")
    before = snapshot(project)
    merging = await merger(project)
    first = await merging.apply([edited("a", 3)], "Edit a", WHEN)
    second = await merging.apply([edited("b", 3)], "Edit b", WHEN)
    assert first.moved and second.moved and second.tip == await merging.tip()
    assert "changed" in git(project, "show", f"{BRANCH}:pkg/a.py")
    assert "changed" in git(project, "show", f"{BRANCH}:pkg/b.py")
    assert git(project, "diff", "--name-only", "main", BRANCH).split() == ["pkg/a.py", "pkg/b.py"]
    assert snapshot(project) == before
    assert git(project, "for-each-ref", "--format=%(refname)").split() == [
        "refs/heads/main",
        f"refs/heads/{BRANCH}",
    ]


async def test_a_commit_is_a_function_of_what_is_in_it(project: Path) -> None:
    merging = await merger(project)
    commit = await merging.commit([edited("a", 1), edited("b", 1)], "Edit", WHEN)
    assert commit == await merging.commit([edited("b", 1), edited("a", 1)], "Edit", WHEN)
    assert commit != await merging.commit([edited("a", 1), edited("b", 1)], "Edit", WHEN + 1)
    assert git(project, "log", "-1", "--format=%an|%ae|%ct|%B", commit).strip() == (
        f"Perilune|perilune@localhost|{WHEN}|Edit"
    )
    assert git(project, "log", "-1", "--format=%P", commit) == merging.base


async def test_merging_twice_moves_nothing(project: Path) -> None:
    merging = await merger(project)
    commit = await merging.commit([edited("a", 1)], "Edit a", WHEN)
    first = await merging.merge(commit, "Merge a", WHEN)
    again = await merging.merge(commit, "Merge a", WHEN)
    assert (first.moved, again.moved, again.tip) == (True, False, first.tip)
    # Another process that takes the session up finds it merged, also below later merges.
    await merging.apply([edited("b", 1)], "Edit b", WHEN)
    later = await merger(project)
    found = await later.merge(commit, "Merge a", WHEN)
    assert not found.moved and found.tip == await merging.tip()


async def test_a_commit_of_an_earlier_run_is_not_merged_again_after_another(project: Path) -> None:
    merging = await merger(project)
    commit = await merging.commit([edited("a", 1)], "Edit a", WHEN)
    await merging.merge(commit, "Merge a", WHEN)
    later = await merger(project)
    await later.apply([edited("b", 1)], "Edit b", WHEN)
    tip = await later.tip()
    found = await later.merge(commit, "Merge a", WHEN)
    assert (found.moved, found.tip, await later.tip()) == (False, tip, tip)


async def test_a_branch_is_taken_up_only_with_what_was_merged(project: Path) -> None:
    merging = await merger(project)
    done = await merging.apply([edited("a", 1)], "Edit a", WHEN)
    again = Merger(await Repository.open(project), BRANCH)
    git(project, "update-ref", f"refs/heads/{BRANCH}", merging.base)
    with pytest.raises(RepositoryError, match="does not hold"):
        await again.create(done.tip)
    git(project, "branch", "-D", BRANCH)
    assert await again.create(done.tip) == done.tip


async def test_no_changes_are_the_base_itself(project: Path) -> None:
    merging = await merger(project)
    assert await merging.commit([], "Nothing", WHEN) == merging.base
    done = await merging.apply([], "Nothing", WHEN)
    assert not done.moved and done.tip == merging.base


async def test_far_lines_of_one_file_merge_and_near_ones_conflict(project: Path) -> None:
    merging = await merger(project)
    await merging.apply([edited("a", 2, "first")], "One", WHEN)
    await merging.apply([edited("a", 17, "last")], "Two", WHEN)
    tip = await merging.tip()
    with pytest.raises(MergeConflict, match=r"pkg/a\.py") as caught:
        await merging.apply([edited("a", 2, "other"), edited("b", 2)], "Three", WHEN)
    assert caught.value.paths == ("pkg/a.py",)
    assert await merging.tip() == tip
    text = git(project, "show", f"{BRANCH}:pkg/a.py")
    assert "first" in text and "last" in text and "<<<<" not in text
    assert "changed" not in git(project, "show", f"{BRANCH}:pkg/b.py")


async def test_two_who_change_alike_do_not_conflict(project: Path) -> None:
    merging = await merger(project)
    await merging.apply([edited("a", 2, "same")], "One", WHEN)
    await merging.apply([edited("a", 2, "same"), edited("b", 2)], "Two", WHEN)
    assert "changed" in git(project, "show", f"{BRANCH}:pkg/b.py")


ODD = ("über/ñ.py", 'quo"te\\back.py', "new\nline.py", "sp ace/ x", "-dash", ":(glob)x", "tab\t.py")


async def test_any_name_mode_and_content_arrives_exactly(project: Path) -> None:
    merging = await merger(project)
    changes = [FileChange(name, name.encode() + b"\0\r\n") for name in ODD]
    changes += [
        FileChange(os.fsdecode(b"latin-\xe9"), b""),
        FileChange("tool", b"#!/bin/sh\n", "100755"),
        FileChange("run.sh", b"#!/bin/sh\n", "100644"),
        FileChange("way", b"pkg/a.py", "120000"),
        FileChange("pkg/c.py", None),
    ]
    await merging.apply(changes, "Odd: ü\n\nBody\n", WHEN)
    repository = await Repository.open(project)
    entries = {entry.path: entry for entry in await repository.entries(await merging.tip())}
    for change in changes:
        if change.content is None:
            assert change.path not in entries
            continue
        assert entries[change.path].mode == change.mode
        assert await repository.read_blobs([entries[change.path].oid]) == [change.content]


async def test_a_file_gives_way_to_a_folder_and_back(project: Path) -> None:
    merging = await merger(project)
    await merging.apply([FileChange("run.sh", None), FileChange("run.sh/main", b"1")], "Split", WHEN)
    assert git(project, "ls-tree", "-r", "--name-only", BRANCH).split()[-1] == "run.sh/main"
    other = await merger(project, "perilune/other")
    deleted = [FileChange(f"pkg/{name}.py", None) for name in "abc"]
    await other.apply([FileChange("pkg", b"1"), *deleted], "Join", WHEN)
    assert git(project, "ls-tree", "-r", "--name-only", "perilune/other").split() == ["pkg", "run.sh"]


async def test_names_and_modes_git_refuses_move_nothing(project: Path) -> None:
    merging = await merger(project)
    with pytest.raises(RepositoryError, match="mode 160000"):
        await merging.commit([FileChange("x", b"", "160000")], "Bad", WHEN)
    for path in (".git/config", "sub/.GIT/config", "a/../b", "/etc/passwd", ""):
        with pytest.raises(RepositoryError, match="is no path"):
            await merging.apply([FileChange(path, b"x")], "Bad", WHEN)
    assert await merging.tip() == merging.base


async def test_branches_that_cannot_be_ours(project: Path) -> None:
    repository = await Repository.open(project)
    with pytest.raises(RepositoryError, match="no branch name"):
        await Merger(repository, "bad..name").create()
    with pytest.raises(RepositoryError, match="is checked out"):
        await Merger(repository, "main").create()
    git(project, "checkout", "-q", "--orphan", "lonely")
    git(project, "commit", "-qm", "Lonely")
    git(project, "checkout", "-q", "main")
    with pytest.raises(RepositoryError, match="does not hold"):
        await Merger(repository, "lonely").create()
    with pytest.raises(RepositoryError, match="does not exist"):
        await Merger(repository, "missing").tip()


async def test_a_folder_of_that_name_is_said_so(project: Path) -> None:
    git(project, "branch", "perilune")
    with pytest.raises(RepositoryError, match="cannot create branch perilune/result"):
        await merger(project)


async def test_somebody_else_moves_the_branch_between(project: Path) -> None:
    mine, other = await merger(project), await merger(project)
    await mine.apply([edited("a", 1)], "Mine", WHEN)
    await other.apply([edited("b", 1)], "Other", WHEN)
    done = await mine.apply([edited("c", 1)], "Mine too", WHEN)
    assert done.moved
    assert git(project, "diff", "--name-only", "main", BRANCH).split() == [
        "pkg/a.py",
        "pkg/b.py",
        "pkg/c.py",
    ]


async def test_many_at_once_from_two_writers_all_arrive(project: Path) -> None:
    writers = [await merger(project), await merger(project)]
    new = [[FileChange(f"new/{number}.txt", b"x")] for number in range(16)]
    jobs = (writers[number % 2].apply(change, f"Add {number}", WHEN) for number, change in enumerate(new))
    done = await asyncio.gather(*jobs)
    assert all(one.moved for one in done)
    assert len(git(project, "ls-tree", "--name-only", f"{BRANCH}:new").split()) == 16


MERGE = """
import asyncio, sys
from perilune.swarm.merge import Merger
from perilune.swarm.repository import Repository
from perilune.swarm.workspaces import FileChange
async def main():
    merger = Merger(await Repository.open(sys.argv[1]), "perilune/result")
    await merger.create()
    print("go", flush=True)
    for number in range(40):
        await merger.apply([FileChange(f"new/{number}.txt", b"x" * number)], f"Add {number}", 1700000000)
        print(number, flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 2, 4])
def test_killed_and_started_again_nothing_is_lost_or_twice(project: Path, lines: int) -> None:
    source = str(Path(__file__).parents[2] / "src")
    command = [sys.executable, "-c", MERGE.replace("range(40)", "range(6)"), str(project)]
    env = {**os.environ, "PYTHONPATH": source}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as child:
        assert child.stdout is not None
        for _ in range(lines):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
    assert len(git(project, "ls-tree", "--name-only", f"{BRANCH}:new").split()) == 6
    subjects = git(project, "log", "--first-parent", "--format=%s", f"main..{BRANCH}").split("\n")
    assert sorted(subjects) == [f"Add {number}" for number in range(6)]
    assert git(project, "fsck", "--no-dangling") == ""
    assert git(project, "status", "--porcelain") == ""
