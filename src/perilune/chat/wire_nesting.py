"""How deep JSON from clients may be nested: whoever walks it later may then do so by recursion."""

from __future__ import annotations

from perilune.errors import InputError

MAX_DEPTH = 64
"""Objects and lists within each other, in schemas and arguments. The hosted API takes schemas 30 deep."""


def refuse_deep(value: object, where: str) -> None:
    """Raises InputError naming `where` for a value nested deeper than MAX_DEPTH."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            for inner in (
                value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            )
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise InputError(f"is nested deeper than {MAX_DEPTH}", field=where, mend="flatten it")
