"""What lies in HOME is for its owner alone, whatever HOME's own mode and the umask are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.swarm.session_parts import GOAL, make_repo

from perilune.accounts.accounts import Accounts
from perilune.api.file_store import FileStore
from perilune.api.search_shelf import SearchShelf
from perilune.backends.base import Backend
from perilune.backends.router import Router
from perilune.backends.scripted import ScriptedBackend
from perilune.chat.web_search import Kept
from perilune.cli import house
from perilune.cli.main import main
from perilune.homefile import save_connection
from perilune.settings import Settings
from perilune.store import HomeLock


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One that was there before, open to all, under an umask that closes nothing."""
    folder = tmp_path / "home"
    folder.mkdir()
    folder.chmod(0o755)
    monkeypatch.setenv("PERILUNE_HOME", str(folder))
    before = os.umask(0)
    yield folder
    os.umask(before)


def shown(home: Path) -> list[str]:
    """What in HOME has a bit for others than its owner; below a closed folder nobody comes."""
    return sorted(path.name for path in home.iterdir() if path.lstat().st_mode & 0o077)


def test_everything_in_home_is_private(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scripted(settings: Settings) -> Backend:
        return Router([ScriptedBackend()])

    monkeypatch.setattr(house, "open_model", scripted)
    repo = make_repo(tmp_path / "repo")
    assert main(["swarm", "run", GOAL, "--repo", str(repo), "--yes"]) == 0
    assert main(["index", str(repo)]) == 0
    FileStore(home / "files").add(1, "a.txt", "file-extract", "text/plain", b"abc")
    SearchShelf(home / "searches").add(1, "0" * 26, Kept("query", "{}", "text", 1))
    save_connection(home, "http://127.0.0.1:9/v1", "key", "model")
    with HomeLock(home), Accounts.open(home, Settings.load(home, {}, {})) as accounts:
        accounts.create_key("one")
        assert {"accounts.db", "accounts.db-wal", "accounts.db-shm"} <= {path.name for path in home.iterdir()}
        assert shown(home) == []
    assert {path.name for path in home.iterdir()} >= {
        "accounts.db", "files", "key-secret", "keys.json", "lock", "perilune.toml", "reports", "search.db",
        "searches", "swarm",
    }  # fmt: skip
    assert shown(home) == []
    assert [path.stat().st_mode & 0o777 for path in (home / "swarm").glob("*.db")] == [0o600]


def test_doctor_tells_of_what_others_can_read(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told() -> dict[str, str]:
        main(["doctor", "--json"])
        checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
        found: dict[str, str] = checks["home"]
        return found

    assert told()["state"] == "ok"
    (home / "perilune.toml").write_text("model_key = 'mine'\n")  # by hand, under that umask
    assert told()["state"] == "warn" and "perilune.toml" in told()["detail"]
    home.chmod(0o700)
    assert told()["state"] == "ok"
