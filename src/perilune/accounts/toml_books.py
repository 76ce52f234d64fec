"""Books that operators write, of prices and of rate tiers: TOML files that are lists of entries."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

from perilune.errors import ConfigError


def read_book(path: str | Path | None, bundled: str, field: str) -> tuple[str, str]:
    """The text of the file at `path`, or without one of the book of that name that comes with Perilune; and
    what to call it in errors. Raises ConfigError naming `field`, the setting that says the path."""
    if not path:
        return resources.files("perilune.accounts").joinpath(bundled).read_text(encoding="utf-8"), bundled
    place = Path(path).expanduser()
    try:
        return place.read_text(encoding="utf-8"), str(place)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        mend = f"name a TOML file of the form that docs/accounts.md shows for {bundled}"
        raise ConfigError(f"cannot read {place}: {why}", field=field, mend=mend) from error


def entries_of(
    text: str, kind: str, source: str, wrong: Callable[[str, str], ConfigError]
) -> list[tuple[Any, str]]:
    """Each `[[kind]]` entry, and where it stands; numbers with a point are decimals. `wrong(where, what)`
    makes the error that is raised for a file that holds anything else."""
    try:
        table = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise wrong(source, f"not valid TOML: {error}") from error
    entries = table.pop(kind, None)
    if table or not isinstance(entries, list) or not entries:
        raise wrong(source, f"expected [[{kind}]] entries and nothing else")
    return [(entry, f"{source}, {kind} {number}") for number, entry in enumerate(entries, start=1)]
