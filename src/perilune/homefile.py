"""HOME/perilune.toml as a file: read, with its paths as they are meant, and edited line by line."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from perilune.errors import ConfigError
from perilune.store import replace_file

FILE_NAME = "perilune.toml"
PATHS = frozenset({"tls_cert", "tls_key", "model_tokenizer", "checkpoint", "price_book", "tier_book"})
"""Settings that name a file or folder."""
TABLE_PATHS = frozenset({"tokenizer", "checkpoint"})
"""Fields of a [[backends]] table that do."""


def read_settings(path: Path) -> dict[str, Any]:
    """What the file says; {} where there is none. A relative path is meant from the file's folder, so that it
    says the same wherever a command is started.

    Raises ConfigError for a file that cannot be read."""
    table = _parse(path, _read_text(path))
    if "home" in table:
        raise ConfigError(f"not allowed in {path}", field="home", mend="use --home or PERILUNE_HOME")
    folder = path.absolute().parent
    found = _resolved(folder, table, PATHS)
    backends = table.get("backends")
    if isinstance(backends, list):
        found["backends"] = [
            _resolved(folder, one, TABLE_PATHS) if isinstance(one, dict) else one for one in backends
        ]
    return found


def _resolved(folder: Path, table: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    paths = {name: value for name, value in table.items() if name in names and isinstance(value, str)}
    return table | {name: _whole_path(folder, name, value) for name, value in paths.items() if value}


def _whole_path(folder: Path, name: str, value: str) -> str:
    try:
        return str(folder / Path(value).expanduser())
    except RuntimeError as error:  # ~NAME
        raise ConfigError(
            f"{value!r} is in the home of a user that is not here", field=name, mend="write the whole path"
        ) from error


def save_connection(home: Path, url: str, key: str, name: str, context: int | None = None) -> None:
    """Write a model endpoint to HOME/perilune.toml, keeping every other line; `context` is its context
    length where that is known, and another endpoint's goes. The file gets mode 0600, for it holds the key.

    Raises ConfigError when the present file cannot be read as TOML."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = home / FILE_NAME
    old_text = _read_text(path)
    wanted: dict[str, object] = {"model_url": url, "model_key": key, "model_name": name}
    if context is not None:
        wanted["model_context"] = context
    expected = _parse(path, old_text) | wanted
    gone = list(wanted)
    if context is None and _parse(path, old_text).get("model_url") != url:
        expected.pop("model_context", None)
        gone.append("model_context")
    replaced = re.compile(rf"\s*({'|'.join(gone)})\s*=")
    lines = [line for line in old_text.splitlines() if not replaced.match(line)]
    at = next((i for i, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    lines[at:at] = [f"{setting} = {json.dumps(value)}" for setting, value in wanted.items()]
    text = "\n".join(lines) + "\n"
    if _parse(path, text) != expected:
        raise ConfigError(f"{path} cannot be edited safely", mend=f"set {', '.join(wanted)} there")
    replace_file(path, text.encode())


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except NotADirectoryError as error:
        raise ConfigError(
            f"{path.parent} is not a folder", field="home", mend="choose another with --home"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", mend="mend or remove the file") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not valid TOML: {error}", mend="mend that line or remove the file"
        ) from error
