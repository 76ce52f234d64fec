"""Typed reading of one JSON object, with errors that name the field and the mend. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from perilune.errors import CheckpointError

_MISSING = object()


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

    def wrong(self, name: str, problem: str, mend: str) -> CheckpointError:
        return CheckpointError(problem, field=f"{self._path}{name}", mend=mend)

    def _get(self, name: str) -> Any:
        if name not in self._values:
            raise self.wrong(name, "missing from config.json", "restore the official config.json")
        return self._values[name]

    def whole(self, name: str, *, least: int = 1) -> int:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(name, f"is {value!r}", f"must be a whole number of at least {least}")
        return value

    def real(self, name: str, *, default: float | None = None) -> float:
        value = default if default is not None and not self.given(name) else self._get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, f"is {value!r}", "must be a number")
        if not math.isfinite(value) or value < 0:
            raise self.wrong(name, f"is {value!r}", "must be finite and not negative")
        return float(value)

    def boolean(self, name: str) -> bool:
        value = self._get(name)
        if not isinstance(value, bool):
            raise self.wrong(name, f"is {value!r}", "must be true or false")
        return value

    def text(self, name: str) -> str:
        value = self._get(name)
        if not isinstance(value, str):
            raise self.wrong(name, f"is {value!r}", "must be a string")
        return value

    def words(self, name: str) -> tuple[str, ...]:
        value = self._values.get(name, [])
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise self.wrong(name, f"is {value!r}", "must be a list of strings")
        return tuple(value)

    def optional_id(self, name: str) -> int | None:
        return self.whole(name, least=0) if self.given(name) else None

    def section(self, name: str) -> Fields:
        value = self._get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, f"is {value!r}", "must be a JSON object")
        return Fields(value, f"{self._path}{name}.")

    def only(self, name: str, supported: object, *, required: bool = False) -> None:
        """Refuse any value but the supported one; absent is fine unless required."""
        value = self._values.get(name, _MISSING)
        if value is _MISSING and not required:
            return
        if value is _MISSING:
            raise self.wrong(name, "missing from config.json", f"this build reads {supported!r}")
        if type(value) is not type(supported) or value != supported:
            raise self.wrong(name, f"{value!r} is not supported", f"this build reads {supported!r} only")
