"""The exception tree: errors.py draws it at the top, and the command line relies on what it says."""

from __future__ import annotations

import inspect
import re

import pytest

from perilune import errors
from perilune.errors import BackendRateLimited, ConfigError, MergeConflict, PeriluneError

CLASSES = {
    name: one for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, PeriluneError)
}


def drawn_tree() -> dict[str, str | None]:
    """Class -> parent, read off the drawing."""
    parents: dict[str, str | None] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"([│├└─\s]*)([A-Z]\w+)(\s|$)", line)
        if not found or not (found[1] or found[2] == "PeriluneError"):
            continue
        depth = len(found[1])
        path = [(at, name) for at, name in path if at < depth]
        parents[found[2]] = path[-1][1] if path else None
        path.append((depth, found[2]))
    return parents


def test_the_drawing_is_the_tree() -> None:
    real = {name: one.__bases__[0].__name__ for name, one in CLASSES.items() if one is not PeriluneError}
    assert drawn_tree() == {"PeriluneError": None, **real}


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_error_says_field_message_and_mend(name: str) -> None:
    error = CLASSES[name]("it broke")
    assert str(error) == "it broke"
    assert isinstance(error.code, str) and 400 <= error.http_status < 600 and 1 <= error.exit_code < 64
    error.field, error.mend = "port", "use another"
    assert str(error) == "port: it broke (use another)"


def test_extras_are_carried() -> None:
    assert BackendRateLimited("slow down", retry_after_s=2.5).retry_after_s == 2.5
    assert MergeConflict("no", paths=("a", "b")).paths == ("a", "b")
    assert ConfigError("bad", field="port", mend="mend it").field == "port"
