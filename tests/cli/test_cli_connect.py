"""Which key `perilune connect` sends: never one that was saved for another endpoint."""

from pathlib import Path

import pytest

from perilune.cli.connect import _known_key
from perilune.homefile import save_connection
from perilune.settings import Settings


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://a.example/v1", "sk-a"),
        ("http://a.example/", "sk-a"),
        ("http://b.example/v1", ""),
        ("https://a.example/v1", ""),
    ],
)
def test_a_saved_key_goes_only_to_its_endpoint(tmp_path: Path, url: str, sent: str) -> None:
    save_connection(tmp_path, "http://a.example/v1", "sk-a", "m")
    assert _known_key(Settings.load(tmp_path, env={}), url) == sent


def test_a_key_of_the_environment_is_meant_for_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERILUNE_MODEL_KEY", "sk-env")
    assert _known_key(Settings.load(tmp_path), "http://b.example") == "sk-env"
    assert _known_key(Settings(home=tmp_path), "http://b.example") == ""
