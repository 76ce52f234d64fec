"""Which text of a JSON body holds what no text may hold: NUL, or half a surrogate pair.

A body is searched only when it may hold one, so that the others pay nothing.
"""

from __future__ import annotations

import json
import re
from typing import Any

from perilune.errors import InputError

NUL = "\x00"
NUL_ESCAPE = b"\\u0000"
HALF_PAIR = re.compile("[\ud800-\udfff]")


def refuse_nul(body: bytes) -> None:
    """Raises InputError naming the field; databases and tools of many kinds end a text there."""
    if NUL_ESCAPE in body and (found := _place(body, re.compile(NUL))) is not None:
        raise InputError("holds a NUL character (U+0000)", field=found, mend="remove it")


def half_pair(body: bytes) -> InputError | None:
    """The error for a body whose only fault is half a surrogate pair; None for any other body."""
    found = _place(body, HALF_PAIR)
    if found is None:
        return None
    return InputError(
        "holds half a surrogate pair, which is no character",
        field=found,
        mend="remove it or send the whole character",
    )


def _place(body: bytes, wanted: re.Pattern[str]) -> str | None:
    """The path of the first text or name with a match; None where there is none or the body is no JSON."""
    try:
        document = json.loads(body.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    open_values: list[tuple[str, Any]] = [("", document)]
    while open_values:
        path, value = open_values.pop()
        if isinstance(value, str) and wanted.search(value):
            return path
        if isinstance(value, dict):
            if any(wanted.search(key) for key in value):
                return path or "body"
            inner = [(f"{path}.{key}" if path else key, one) for key, one in value.items()]
            open_values += reversed(inner)
        elif isinstance(value, list):
            open_values += reversed([(f"{path}[{place}]", one) for place, one in enumerate(value)])
    return None
