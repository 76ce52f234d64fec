"""Paths an agent may not name, and files it may not read."""

import os
from pathlib import Path

import pytest

from perilune.agent.workspace import (
    DirectoryWorkspace,
    PathRefused,
    clean_folder,
    clean_path,
    read_text,
    write_text,
)


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "/etc/passwd",
        "~/.ssh/id",
        "..",
        "../x",
        "a/../../x",
        "a\0b",
        "a\\..\\b",
        ".git/config",
        "a/.GIT/hooks/x",
    ],
)
def test_paths_outside_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(PathRefused):
        clean_path(path)
    workspace = DirectoryWorkspace(tmp_path)
    for act in (workspace.read_bytes, workspace.exists, lambda p: workspace.write_bytes(p, b"x")):
        with pytest.raises(PathRefused):
            act(path)


def test_clean_paths_and_folders() -> None:
    assert clean_path("./a//b/./c.py") == "a/b/c.py"
    assert [clean_folder(name) for name in ("", ".", "a/", "a/b")] == ["", "", "a", "a/b"]
    for folder in ("/", "/etc", "../x"):
        with pytest.raises(PathRefused):
            clean_folder(folder)


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "secret").write_text("s")
    (inside / "link").symlink_to(outside / "secret")
    (inside / "folder").symlink_to(outside)
    (inside / "dangling").symlink_to(outside / "new")
    workspace = DirectoryWorkspace(inside)
    for path in ("link", "folder/secret", "folder/new", "dangling"):
        with pytest.raises(PathRefused, match="symbolic link"):
            workspace.read_bytes(path)
        with pytest.raises(PathRefused, match="symbolic link"):
            workspace.write_bytes(path, b"x")
    assert workspace.list_files() == []
    assert sorted(os.listdir(outside)) == ["secret"]


def test_listing_is_sorted_and_leaves_out_git_and_caches(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.py", "a/b/c.py", ".git/config", "a/__pycache__/z.pyc", ".github/x.yml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    workspace = DirectoryWorkspace(tmp_path)
    assert workspace.list_files() == [".github/x.yml", "a/b/c.py", "a/z.py", "b.py"]
    assert workspace.list_files("a/") == ["a/b/c.py", "a/z.py"]
    for folder in ("gone", "b.py", ".git"):
        with pytest.raises(PathRefused):
            workspace.list_files(folder)


def test_special_files_large_files_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "big").write_bytes(b"x" * 11)
    workspace = DirectoryWorkspace(tmp_path, max_file_bytes=10)
    with pytest.raises(PathRefused, match="pipe is not a file"):
        workspace.read_bytes("pipe")
    with pytest.raises(PathRefused, match="folder is not a file"):
        workspace.write_bytes("folder", b"")
    with pytest.raises(PathRefused, match="larger than 10"):
        workspace.read_bytes("big")
    with pytest.raises(PathRefused, match="larger than 10"):
        workspace.write_bytes("new", b"x" * 11)
    with pytest.raises(PathRefused, match="no file big/x"):
        workspace.read_bytes("big/x")


def test_text_is_written_whole_and_read_back(tmp_path: Path) -> None:
    workspace = DirectoryWorkspace(tmp_path)
    write_text(workspace, "deep/er/a.txt", "é\r\n", 100)
    assert read_text(workspace, "deep/er/a.txt", 100) == "é\r\n"
    assert os.listdir(tmp_path / "deep" / "er") == ["a.txt"]
    with pytest.raises(PathRefused, match="surrogate"):
        write_text(workspace, "a", "\ud800", 100)
    with pytest.raises(PathRefused, match="larger than 2"):
        write_text(workspace, "a", "xyz", 2)
