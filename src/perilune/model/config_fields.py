"""Typed reading of one JSON object, with errors that name the field and the mend. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perilune.errors import CheckpointError

_MISSING = object()
MAX_WHOLE = 2**31 - 1
"""No count, width or token id of a model is larger."""
MAX_REAL = 1e12


class Fields:
    """One object of config.json; `path` is where it stands, for messages."""

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self._values = values
        self._path = path

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._values)

    def given(self, name: str) -> bool:
        """Present and not null."""
        return self._values.get(name) is not None

    def same(self, name: str, other: Fields) -> bool:
        """Whether both have one value, or none."""
        return bool(self._values.get(name) == other._values.get(name))

    def wrong(self, name: str, problem: str, mend: str) -> CheckpointError:
        return CheckpointError(problem, field=f"{self._path}{name}", mend=mend)

    def _get(self, name: str) -> Any:
        if name not in self._values:
            raise self.wrong(name, "missing from config.json", "restore the official config.json")
        return self._values[name]

    def whole(self, name: str, *, least: int = 1) -> int:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(name, f"is {_shown(value)}", f"must be a whole number of at least {least}")
        if value > MAX_WHOLE:
            raise self.wrong(name, f"is {_shown(value)}", "no model has so many: restore the official file")
        return value

    def real(self, name: str, *, default: float | None = None, least: float = 0.0) -> float:
        value = default if default is not None and not self.given(name) else self._get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, f"is {_shown(value)}", "must be a number")
        # Compared before it is converted: a whole number may be larger than any float.
        if not least <= value <= MAX_REAL:
            raise self.wrong(name, f"is {_shown(value)}", f"must be finite and at least {least:g}")
        return float(value)

    def pair(self, name: str) -> tuple[int, int]:
        """Two whole numbers of at least 1, as JSON writes them: a list of two."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) != 2 or not all(type(one) is int for one in value):
            raise self.wrong(name, f"is {_shown(value)}", "must be a list of two whole numbers")
        if not all(1 <= one <= MAX_WHOLE for one in value):
            raise self.wrong(name, f"is {_shown(value)}", "both must be at least 1")
        return value[0], value[1]

    def boolean(self, name: str) -> bool:
        value = self._get(name)
        if not isinstance(value, bool):
            raise self.wrong(name, f"is {_shown(value)}", "must be true or false")
        return value

    def text(self, name: str) -> str:
        value = self._get(name)
        if not isinstance(value, str):
            raise self.wrong(name, f"is {_shown(value)}", "must be a string")
        return value

    def words(self, name: str) -> tuple[str, ...]:
        value = self._values.get(name, [])
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise self.wrong(name, f"is {_shown(value)}", "must be a list of strings")
        return tuple(value)

    def optional_id(self, name: str) -> int | None:
        return self.whole(name, least=0) if self.given(name) else None

    def section(self, name: str) -> Fields:
        value = self._get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, f"is {_shown(value)}", "must be a JSON object")
        return Fields(value, f"{self._path}{name}.")

    def only(self, name: str, supported: object, *, required: bool = False) -> None:
        """Refuse any value but the supported one; absent is fine unless required."""
        value = self._values.get(name, _MISSING)
        if value is _MISSING and not required:
            return
        if value is _MISSING:
            raise self.wrong(name, "missing from config.json", f"this build reads {supported!r}")
        if type(value) is not type(supported) or value != supported:
            raise self.wrong(
                name, f"{_shown(value)} is not supported", f"this build reads {supported!r} only"
            )


def _shown(value: object) -> str:
    """A value for a message: short, whatever it holds."""
    if isinstance(value, int) and abs(value) > 2**128:
        return "a whole number of very many digits"
    if isinstance(value, (list, dict)) and value:
        return f"a {'list' if isinstance(value, list) else 'JSON object'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
