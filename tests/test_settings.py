"""Settings: the order of their sources, and one clear line for whatever is wrong."""

from __future__ import annotations

import stat
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from perilune.errors import ConfigError
from perilune.homefile import FILE_NAME, save_connection
from perilune.settings import Settings, default_home

ROOT = Path(__file__).parents[1]


def test_later_sources_win(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('port = 1\nhost = "0.0.0.0"\nretries = 7\n')
    env = {"PERILUNE_PORT": "2", "PERILUNE_HOST": "::1"}
    settings = Settings.load(tmp_path, {"port": 3, "log_level": None}, env)
    assert (settings.port, settings.host, settings.retries, settings.log_level) == (3, "::1", 7, "info")


def test_home_comes_from_argument_flag_variable_or_data_folder(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in "abc")
    assert Settings.load(one, {"home": two}, {"PERILUNE_HOME": str(three)}).home == one
    assert Settings.load(None, {"home": two}, {"PERILUNE_HOME": str(three)}).home == two
    assert Settings.load(None, {}, {"PERILUNE_HOME": str(three)}).home == three
    assert Settings.load(None, {}, {"XDG_DATA_HOME": str(one)}).home == one / "perilune"
    assert default_home({"HOME": "/u"}) == Path("/u/.local/share/perilune")


def test_settings_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(FrozenInstanceError):
        Settings(home=tmp_path).port = 1  # type: ignore[misc]


def test_a_new_home_is_closed(tmp_path: Path) -> None:
    """What nobody has set lets nobody in and goes nowhere."""
    new = Settings.load(tmp_path, {}, {})
    assert new.host == "127.0.0.1" and new.admin_port == 0
    assert (new.cors_origins, new.model_url, new.base_url, new.searxng_url, new.backends) == (
        "",
        "",
        "",
        "",
        (),
    )
    assert not new.unsandboxed and new.log_level == "info" and new.max_connections > 0


def test_keys_are_not_shown(tmp_path: Path) -> None:
    assert "plk_secret" not in repr(Settings(home=tmp_path, api_key="plk_secret", model_key="plk_secret"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", ["prot", "unknown setting", "did you mean port?"]),
        ("[swarm]\nx = 1", ["swarm", "unknown setting", "at the file's top, not below [swarm]"]),
        ('port = "high"', ["port", "'high'", "a whole number"]),
        ("port = 70000", ["port", "between 0 and 65535"]),
        ("retries = -1", ["retries", "at least 0"]),
        ('dtype = "int8"', ["dtype", "one of float32, bfloat16"]),
        ('home = "/x"', ["home", "--home"]),
        ("port = ", ["not valid TOML"]),
        ("unsandboxed = 3", ["unsandboxed", "true or false"]),
        ("model_timeout_s = 0", ["model_timeout_s", "at least"]),
    ],
)
def test_a_bad_file_gets_one_clear_line(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ConfigError) as caught:
        Settings.load(tmp_path, {}, {})
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value).strip()


def test_a_home_that_is_a_file_is_not_told_to_be_mended(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("mine")
    with pytest.raises(ConfigError, match=r"^home: .*home is not a folder \(choose another with --home\)"):
        Settings.load(tmp_path / "home", {}, {})


def test_a_bad_variable_or_flag_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="environment variable PERILUNE_PORTT"):
        Settings.load(tmp_path, {}, {"PERILUNE_PORTT": "1"})
    with pytest.raises(ConfigError, match="flag --max-agents"):
        Settings.load(tmp_path, {"max_agents": "many"}, {})


def test_empty_and_foreign_variables_count_as_absent(tmp_path: Path) -> None:
    settings = Settings.load(tmp_path, {}, {"PERILUNE_PORT": "", "PERILUNE_K26_TOKENIZER": "/x", "PORT": "9"})
    assert settings == Settings(home=tmp_path)


@pytest.mark.parametrize(("word", "value"), [("1", True), ("Yes", True), ("off", False), ("false", False)])
def test_words_for_yes_and_no(tmp_path: Path, word: str, value: bool) -> None:
    assert Settings.load(tmp_path, {}, {"PERILUNE_UNSANDBOXED": word}).unsandboxed is value


def test_a_connection_is_saved_beside_other_lines(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_text('# mine\nport = 9\nmodel_url = "http://old"\n')
    save_connection(tmp_path, "http://x/v1", 'k"1', "kimi-k2.6")
    settings = Settings.load(tmp_path, {}, {})
    assert (settings.model_url, settings.model_key, settings.model_name) == (
        "http://x/v1",
        'k"1',
        "kimi-k2.6",
    )
    assert settings.port == 9 and "# mine" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_known_context_is_saved_too(tmp_path: Path) -> None:
    save_connection(tmp_path, "http://x/v1", "", "m", 32768)
    save_connection(tmp_path, "http://y/v1", "", "m", 65536)
    assert Settings.load(tmp_path, {}, {}).model_context == 65536
    save_connection(tmp_path, "http://y/v1", "", "other")
    assert Settings.load(tmp_path, {}, {}).model_context == 65536
    save_connection(tmp_path, "http://silent/v1", "", "m")
    assert Settings.load(tmp_path, {}, {}).model_context == Settings(home=tmp_path).model_context


def test_a_file_that_cannot_be_edited_safely_is_left_alone(tmp_path: Path) -> None:
    text = 'model_url = """\nhttp://old\n"""\n'
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ConfigError):
        save_connection(tmp_path, "http://x/v1", "", "m")
    assert (tmp_path / FILE_NAME).read_text() == text


def test_the_page_says_what_the_code_says() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "settings_page.py"), "--check"]
    env = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (ROOT / "docs" / "settings.md").read_text()
    assert [one.name for one in fields(Settings) if f"| `{one.name}` |" not in page] == []


def test_a_relative_path_is_meant_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the file says the same wherever a command is started; a flag is meant from where it is given."""
    home = tmp_path / "home"
    home.mkdir()
    (home / FILE_NAME).write_text(
        'tier_book = "tiers.toml"\nprice_book = "/etc/prices.toml"\ncheckpoint = ""\n'
        '[[backends]]\nname = "a"\ntokenizer = "k26"\nmodel = "k26"\n'
    )
    monkeypatch.chdir(tmp_path)
    settings = Settings.load(home, {"tls_cert": "cert.pem"}, {})
    assert (settings.tier_book, settings.price_book) == (str(home / "tiers.toml"), "/etc/prices.toml")
    assert (settings.checkpoint, settings.tls_cert) == ("", "cert.pem")
    assert settings.backends == ({"name": "a", "tokenizer": str(home / "k26"), "model": "k26"},)


def test_a_path_of_nobody_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('checkpoint = "~nobody-of-that-name/k26"')
    with pytest.raises(ConfigError, match="write the whole path") as refused:
        Settings.load(tmp_path, {}, {})
    assert refused.value.field == "checkpoint"


@pytest.mark.parametrize("line", ['prepaid = "yes"', 'port = "8000"', 'activation_usd = "1.5"'])
def test_numbers_and_yes_or_no_have_no_quotes_in_the_file(tmp_path: Path, line: str) -> None:
    (tmp_path / FILE_NAME).write_text(line)
    with pytest.raises(ConfigError, match="write it without quotes") as refused:
        Settings.load(tmp_path, {}, {})
    assert refused.value.field == line.partition(" ")[0]
