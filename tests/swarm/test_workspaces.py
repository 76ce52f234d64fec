"""Overlay workspaces: what is read, written and reported, in the process and under a real overlay mount."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from perilune.agent.sandbox import ProcessLimits, Sandbox, probe_machine
from perilune.agent.workspace import PathRefused
from perilune.errors import InputError
from perilune.swarm.workspaces import FileChange, OverlayWorkspace, Workspaces

needs_overlay = pytest.mark.skipif(
    not probe_machine().overlay, reason=f"no overlays on this machine: {probe_machine().reason}"
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    root = tmp_path / "base"
    (root / "pkg" / "deep").mkdir(parents=True)
    (root / "pkg" / "a.py").write_text("a = 1\n")
    (root / "pkg" / "deep" / "b.py").write_text("b = 2\n")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("pkg/a.py")
    (root / "way").symlink_to("pkg")
    (root / ".gitignore").write_text("*.log\nbuild/\n!keep.log\n")
    return root


@pytest.fixture
def workspaces(tmp_path: Path, base: Path) -> Workspaces:
    return Workspaces(tmp_path / "spaces", base, max_file_bytes=1000)


@pytest.fixture
def space(workspaces: Workspaces) -> OverlayWorkspace:
    return workspaces.open("T1", 0)


def tree(root: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(root).as_posix(): (path.read_bytes(), path.lstat().st_mode)
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


async def shell(space: OverlayWorkspace, command: str) -> str:
    limits = ProcessLimits(seconds=20)
    done = await Sandbox.probe().run(("sh", "-c", f"umask 022; {command}"), space.view, limits)
    assert done.exit_code == 0, done.output
    return done.output


# ---- in the process


async def test_reading_and_writing_leave_the_base_alone(space: OverlayWorkspace, base: Path) -> None:
    before = tree(base)
    assert space.read_bytes("pkg/a.py") == b"a = 1\n"
    space.write_bytes("pkg/a.py", b"a = 9\n")
    space.write_bytes("new/deep/c.py", b"c\n")
    space.write_bytes("run.sh", b"#!/bin/bash\n")
    assert space.read_bytes("pkg/./a.py") == b"a = 9\n"
    assert space.read_base("pkg/a.py") == b"a = 1\n"
    assert space.read_base("new/deep/c.py") is None and space.read_base("link") is None
    assert space.exists("new/deep/c.py") and not space.exists("pkg") and not space.exists("none")
    assert await space.changes() == (
        FileChange("new/deep/c.py", b"c\n"),
        FileChange("pkg/a.py", b"a = 9\n"),
        FileChange("run.sh", b"#!/bin/bash\n", "100755"),
    )
    assert tree(base) == before


async def test_a_file_written_back_is_no_change(space: OverlayWorkspace) -> None:
    space.write_bytes("pkg/a.py", b"other")
    space.write_bytes("pkg/a.py", b"a = 1\n")
    assert await space.changes() == ()


def test_files_are_listed_without_caches_and_links(space: OverlayWorkspace, base: Path) -> None:
    space.write_bytes("pkg/new.py", b"")
    space.write_bytes("__pycache__/x.pyc", b"")
    (base / "node_modules").mkdir()
    (base / "node_modules" / "x.js").write_text("")
    assert space.list_files() == [".gitignore", "pkg/a.py", "pkg/deep/b.py", "pkg/new.py", "run.sh"]
    assert space.list_files("pkg/") == ["pkg/a.py", "pkg/deep/b.py", "pkg/new.py"]
    with pytest.raises(PathRefused, match="no directory nowhere"):
        space.list_files("nowhere")
    with pytest.raises(PathRefused, match="no directory run"):
        space.list_files("run.sh")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/etc/passwd", "not a relative path"),
        ("../base/run.sh", "leaves the workspace"),
        (".git/config", "inside .git"),
        ("way/a.py", "symbolic link"),
        ("link", "symbolic link"),
        ("none.py", "no file none.py"),
        ("run.sh/x", "no file"),
        ("pkg", "not a file"),
    ],
)
def test_what_may_not_be_read(space: OverlayWorkspace, path: str, message: str) -> None:
    with pytest.raises(PathRefused, match=message):
        space.read_bytes(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("way/new.py", "symbolic link"),
        ("pkg", "not a file"),
        ("run.sh/x", "below a file"),
        (".GIT/hooks/x", "inside .git"),
    ],
)
async def test_what_may_not_be_written(space: OverlayWorkspace, path: str, message: str) -> None:
    with pytest.raises(PathRefused, match=message):
        space.write_bytes(path, b"x")
    assert await space.changes() == ()


def test_the_size_limit_holds_both_ways(space: OverlayWorkspace, base: Path) -> None:
    (base / "large").write_bytes(b"x" * 1001)
    with pytest.raises(PathRefused, match="larger than 1000"):
        space.read_bytes("large")
    with pytest.raises(PathRefused, match="would be larger"):
        space.write_bytes("large", b"x" * 1001)


async def test_new_files_that_are_ignored_are_no_work(space: OverlayWorkspace, base: Path) -> None:
    (base / "old.log").write_text("committed all the same")
    for path in ("x.log", "build/out", "keep.log", "old.log", "pkg/y.log"):
        space.write_bytes(path, b"1")
    assert [change.path for change in await space.changes()] == ["keep.log", "old.log"]


async def test_attempts_and_assignments_are_apart(workspaces: Workspaces) -> None:
    workspaces.open("T1", 0).write_bytes("x", b"1")
    assert workspaces.open("T1", 0).read_bytes("x") == b"1"
    assert not workspaces.open("T1", 1).exists("x")
    assert not workspaces.open("T2", 0).exists("x")
    for name in ("", "a/b", "..", ".x", "x" * 200):
        with pytest.raises(InputError, match="cannot name"):
            workspaces.open(name, 0)
    with pytest.raises(InputError):
        workspaces.open("T1", -1)


async def test_half_a_write_is_no_change(space: OverlayWorkspace) -> None:
    (space.home / "writing.999").write_text("half")
    assert await space.changes() == ()


CHANGES = (
    FileChange("link", b"pkg/deep/b.py", "120000"),
    FileChange("new/ü/c.py", b"c\0\n"),
    FileChange("pkg/a.py", None),
    FileChange("pkg/deep/b.py", b"b = 3\n"),
    FileChange("run.sh", b"#!/bin/sh\n", "100644"),
)


async def test_a_workspace_is_rebuilt_from_its_changes(space: OverlayWorkspace) -> None:
    space.write_bytes("stray", b"1")
    await space.reset(CHANGES)
    assert await space.changes() == CHANGES
    assert not space.exists("pkg/a.py") and not space.exists("stray")
    assert space.list_files() == [".gitignore", "new/ü/c.py", "pkg/deep/b.py", "run.sh"]
    space.write_bytes("pkg/a.py", b"back\n")
    assert space.read_bytes("pkg/a.py") == b"back\n"
    await space.reset()
    assert await space.changes() == ()


async def test_files_and_folders_change_places(space: OverlayWorkspace) -> None:
    changes = (
        FileChange("pkg", b"now a file"),
        FileChange("pkg/a.py", None),
        FileChange("pkg/deep/b.py", None),
        FileChange("run.sh", None),
        FileChange("run.sh/main", b"1"),
    )
    await space.reset(changes)
    assert await space.changes() == changes
    assert space.read_bytes("pkg") == b"now a file"
    assert space.list_files() == [".gitignore", "pkg", "run.sh/main"]
    with pytest.raises(PathRefused):
        space.read_bytes("pkg/a.py")


async def test_a_deletion_of_what_is_not_there_is_nothing(space: OverlayWorkspace) -> None:
    await space.reset((FileChange("none/x", None),))
    assert await space.changes() == ()


async def test_a_change_that_leaves_the_workspace_is_refused(space: OverlayWorkspace, tmp_path: Path) -> None:
    for path in ("../out", "/out", ".git/config"):
        with pytest.raises(PathRefused):
            await space.reset((FileChange(path, b"x"),))
    assert not (tmp_path / "spaces" / "out").exists()


async def test_whiteouts_and_opaque_folders_of_the_kernels_other_form(space: OverlayWorkspace) -> None:
    upper = space.view.upper
    (upper / "pkg").mkdir()
    (upper / "pkg" / "a.py").touch()
    os.setxattr(upper / "pkg" / "a.py", "user.overlay.whiteout", b"y")
    assert await space.changes() == (FileChange("pkg/a.py", None),)
    assert not space.exists("pkg/a.py")
    (upper / "pkg" / "a.py").unlink()
    os.setxattr(upper / "pkg", "user.overlay.opaque", b"x")
    assert await space.changes() == ()
    os.setxattr(upper / "pkg", "user.overlay.opaque", b"y")
    assert [change.path for change in await space.changes()] == ["pkg/a.py", "pkg/deep/b.py"]
    assert space.list_files("pkg") == []


async def test_what_is_neither_file_nor_link_is_left_out(space: OverlayWorkspace) -> None:
    os.mkfifo(space.view.upper / "pipe")
    (space.view.upper / "big").write_bytes(b"x" * 1001)
    (space.view.upper / ".git").mkdir()
    (space.view.upper / ".git" / "config").write_text("")
    assert await space.changes() == ()
    with pytest.raises(PathRefused, match="no file pipe"):
        space.read_bytes("pipe")


def test_closing_removes_locked_folders_too(space: OverlayWorkspace) -> None:
    locked = space.home / "work" / "work"
    locked.mkdir()
    (locked / "x").write_text("")
    locked.chmod(0)
    space.close()
    assert not space.home.exists()
    space.close()


# ---- under the mount of a sandboxed command

WORK = """
rm pkg/a.py
echo 'b = 4' > pkg/deep/b.py
mkdir fresh && echo 1 > fresh/one && ln -s ../run.sh fresh/link
chmod -x run.sh
rm link && mkdir link && echo 2 > link/inside
mv pkg/deep moved
echo noise > noise.log
mkdir -p __pycache__ && echo x > __pycache__/y.pyc
"""


@needs_overlay
async def test_a_command_and_the_process_see_one_tree(space: OverlayWorkspace, base: Path) -> None:
    before = tree(base)
    space.write_bytes("from_process", b"hello\n")
    assert await shell(space, f"cat from_process; {WORK}") == "hello\n"
    found = {change.path: (change.content, change.mode) for change in await space.changes()}
    assert found == {
        "from_process": (b"hello\n", "100644"),
        "fresh/link": (b"../run.sh", "120000"),
        "fresh/one": (b"1\n", "100644"),
        "link": (None, "100644"),
        "link/inside": (b"2\n", "100644"),
        "moved/b.py": (b"b = 4\n", "100644"),
        "pkg/a.py": (None, "100644"),
        "pkg/deep/b.py": (None, "100644"),
        "run.sh": (b"#!/bin/sh\n", "100644"),
    }
    listing = await shell(space, "find . -type f -not -path '*/__pycache__/*' | sort")
    assert [f"./{path}" for path in space.list_files()] == sorted(listing.split())
    assert space.read_bytes("moved/b.py") == b"b = 4\n"
    assert not space.exists("pkg/deep/b.py")
    assert tree(base) == before


@needs_overlay
async def test_a_folder_made_anew_hides_the_old_one(space: OverlayWorkspace) -> None:
    await shell(space, "rm -r pkg && mkdir pkg && echo 1 > pkg/only")
    assert space.list_files("pkg") == ["pkg/only"]
    assert [(change.path, change.content) for change in await space.changes()] == [
        ("pkg/a.py", None),
        ("pkg/deep/b.py", None),
        ("pkg/only", b"1\n"),
    ]


@needs_overlay
async def test_a_rebuilt_workspace_looks_the_same_to_a_command(
    space: OverlayWorkspace, workspaces: Workspaces
) -> None:
    await shell(space, WORK)
    copy = workspaces.open("T2", 0)
    await copy.reset(await space.changes())
    look = "find . -not -type d -not -path '*/__pycache__/*' -not -name '*.log' -printf '%m %p %l\\n' | sort"
    assert await shell(copy, look) == await shell(space, look)
    assert await copy.changes() == await space.changes()


@needs_overlay
async def test_changes_survive_into_the_next_command(space: OverlayWorkspace) -> None:
    await shell(space, "rm pkg/a.py; echo x > y")
    space.write_bytes("pkg/a.py", b"again\n")
    assert await shell(space, "cat pkg/a.py y") == "again\nx\n"
    space.close()
    assert not space.home.exists()


def test_a_written_file_keeps_the_bases_mode(space: OverlayWorkspace) -> None:
    space.write_bytes("run.sh", b"x")
    mode = (space.view.upper / "run.sh").stat().st_mode
    assert stat.S_IMODE(mode) == 0o755
    assert space.base_mode("run.sh") == "100755"
    assert space.base_mode("none") is None
