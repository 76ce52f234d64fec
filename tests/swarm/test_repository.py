"""The supervisor's view of a repository: what it refuses, what it reads, that it leaves the user alone."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from perilune.errors import RepositoryError
from perilune.swarm.repository import Repository, git_environment, run_git


def git(folder: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=folder, env=git_environment({}), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit_all(folder: Path, message: str = "Work") -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small repository with an executable, a link, odd names and raw bytes."""
    root = tmp_path / "project"
    (root / "src" / "deep").mkdir(parents=True)
    git(root, "init", "-q", "-b", "main")
    (root / "src" / "a.py").write_text("x = 1\n")
    (root / "src" / "deep" / "ü ber.py").write_text("y = 2\n")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("src/a.py")
    (root / "data.bin").write_bytes(b"\0\r\n\xff")
    commit_all(root)
    return root


# ---- opening


async def test_it_opens_from_any_folder_inside(project: Path) -> None:
    repository = await Repository.open(project / "src" / "deep")
    assert repository.root == project
    assert repository.base_commit == git(project, "rev-parse", "HEAD")
    assert repository.current_branch == "refs/heads/main"
    git(project, "checkout", "-q", "--detach")
    assert (await Repository.open(project)).current_branch is None


async def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"is not a git repository.*git init"):
        await Repository.open(tmp_path)
    with pytest.raises(RepositoryError, match="is not a directory"):
        await Repository.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match="is not a directory"):
        await Repository.open(tmp_path / "file")


async def test_bare_empty_and_inside_of_git(project: Path, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "bare.git")
    with pytest.raises(RepositoryError, match=r"bare repository.*git clone"):
        await Repository.open(tmp_path / "bare.git")
    git(tmp_path, "init", "-q", "empty")
    with pytest.raises(RepositoryError, match=r"no commit yet.*git commit"):
        await Repository.open(tmp_path / "empty")
    with pytest.raises(RepositoryError, match=r"inside a \.git folder"):
        await Repository.open(project / ".git")


async def test_uncommitted_changes_are_refused_by_name(project: Path) -> None:
    for name in ("run.sh", "data.bin"):
        (project / name).write_text("changed")
    with pytest.raises(RepositoryError, match=r"uncommitted changes: data\.bin, run\.sh .*git stash"):
        await Repository.open(project)
    git(project, "add", "-A")
    with pytest.raises(RepositoryError, match="uncommitted"):
        await Repository.open(project)


async def test_many_uncommitted_changes_are_counted(project: Path) -> None:
    for number in range(6):
        (project / f"n{number}").write_text("1")
    commit_all(project)
    for number in range(6):
        (project / f"n{number}").write_text("2")
    with pytest.raises(RepositoryError, match="n0, n1, n2 and 3 more"):
        await Repository.open(project)


async def test_untracked_files_are_only_noted(project: Path) -> None:
    (project / "note.txt").write_text("mine")
    repository = await Repository.open(project)
    assert await repository.notes() == ("untracked files are not part of the work",)


async def test_a_session_that_resumes_opens_at_its_own_commit(project: Path) -> None:
    base = git(project, "rev-parse", "HEAD")
    (project / "src" / "a.py").write_text("x = 2\n")
    commit_all(project)
    (project / "src" / "a.py").write_text("dirty\n")
    repository = await Repository.open(project, base=base)
    assert repository.base_commit == base
    with pytest.raises(RepositoryError, match="has no commit"):
        await Repository.open(project, base="0" * 40)


async def test_the_callers_git_variables_point_nowhere(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert (await Repository.open(project)).root == project


async def test_a_linked_worktree_is_a_repository(project: Path, tmp_path: Path) -> None:
    git(project, "worktree", "add", "-q", str(tmp_path / "second"), "-b", "second")
    repository = await Repository.open(tmp_path / "second")
    assert repository.root == tmp_path / "second"
    assert repository.current_branch == "refs/heads/second"
    assert "src/a.py" in await repository.tracked_files(repository.base_commit)


# ---- reading


async def test_files_are_listed_by_folder_without_links(project: Path) -> None:
    repository = await Repository.open(project)
    base = repository.base_commit
    assert await repository.tracked_files(base) == ("data.bin", "run.sh", "src/a.py", "src/deep/ü ber.py")
    assert await repository.tracked_files(base, "src/") == ("src/a.py", "src/deep/ü ber.py")
    assert await repository.tracked_files(base, "sr") == ()
    assert await repository.tracked_files(base, ":(glob)**") == ()
    modes = {entry.path: entry.mode for entry in await repository.entries(base)}
    assert modes["run.sh"] == "100755" and modes["link"] == "120000"


async def test_contents_come_back_as_committed(project: Path) -> None:
    repository = await Repository.open(project)
    wanted = ["data.bin", "src/deep/ü ber.py", "link", "none.py"]
    assert await repository.read_files(repository.base_commit, wanted) == {
        "data.bin": b"\0\r\n\xff",
        "src/deep/ü ber.py": b"y = 2\n",
        "link": b"src/a.py",
    }
    assert await repository.read_blobs([]) == []
    with pytest.raises(RepositoryError, match="is missing"):
        await repository.read_blobs(["0" * 40])


async def test_an_export_is_exact_and_done_once(project: Path, tmp_path: Path) -> None:
    (project / ".gitattributes").write_text("*.txt text eol=crlf\n* ident\n")
    (project / "crlf.txt").write_bytes(b"one\r\ntwo\r\n")
    (project / "ident.md").write_text("$Id$\n")
    commit_all(project)
    repository = await Repository.open(project)
    dest = await repository.export(repository.base_commit, tmp_path / "out")
    listed = await repository.read_files(repository.base_commit, ["crlf.txt"])
    assert (dest / "crlf.txt").read_bytes() == listed["crlf.txt"]
    assert (dest / "ident.md").read_text() == "$Id$\n"
    assert os.readlink(dest / "link") == "src/a.py"
    assert (dest / "run.sh").stat().st_mode & stat.S_IXUSR
    assert not (dest / ".git").exists()
    (dest / "mine").write_text("kept")
    await repository.export(repository.base_commit, dest)
    assert (dest / "mine").exists()


async def test_a_half_done_export_is_done_again(project: Path, tmp_path: Path) -> None:
    repository = await Repository.open(project)
    (tmp_path / "out" / "src").mkdir(parents=True)
    (tmp_path / "out" / "stale").write_text("")
    dest = await repository.export(repository.base_commit, tmp_path / "out")
    assert not (dest / "stale").exists()
    assert (dest / "src" / "a.py").read_text() == "x = 1\n"


async def test_the_diff_is_plain(project: Path) -> None:
    git(project, "config", "color.ui", "always")
    git(project, "config", "diff.external", "/bin/false")
    base = git(project, "rev-parse", "HEAD")
    (project / "src" / "a.py").write_text("x = 2\n")
    tip = commit_all(project)
    repository = await Repository.open(project)
    diff = await repository.diff(base, tip)
    assert "-x = 1\n+x = 2\n" in diff and "\x1b" not in diff


async def test_submodules_and_lfs_are_noted(project: Path, tmp_path: Path) -> None:
    commit = git(project, "rev-parse", "HEAD")
    git(project, "update-index", "--add", "--cacheinfo", f"160000,{commit},vendor/lib")
    (project / ".gitattributes").write_text("*.psd filter=lfs diff=lfs\n")
    git(project, "add", ".gitattributes")
    git(project, "commit", "-qm", "Vendor")
    (project / "vendor" / "lib").mkdir(parents=True)
    repository = await Repository.open(project)
    notes = await repository.notes()
    assert "submodules are left out: vendor/lib" in notes
    assert "Git LFS files appear as their pointers" in notes
    dest = await repository.export(repository.base_commit, tmp_path / "out")
    assert not (dest / "vendor").exists()


# ---- leaving the user alone


async def test_no_hook_runs_and_a_failure_carries_gits_words(project: Path, tmp_path: Path) -> None:
    hook = project / ".git" / "hooks" / "reference-transaction"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    hook.chmod(0o755)
    repository = await Repository.open(project)
    await repository.must("update-ref", "refs/heads/other", repository.base_commit)
    assert not (tmp_path / "hooked").exists()
    with pytest.raises(RepositoryError, match=r"git cat-file failed: .*nowhere"):
        await repository.must("cat-file", "-t", "nowhere")


async def test_git_runs_in_no_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="is not a directory"):
        await run_git(tmp_path / "none", "--version")
    with pytest.raises(RepositoryError, match="is not a directory"):
        (tmp_path / "file").write_text("")
        await run_git(tmp_path / "file", "--version")
