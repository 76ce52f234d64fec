"""Markers by their spelling, for answers of which nothing but the text is left."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from perilune.chat.tokenizer import (
    CALL_ARGUMENTS,
    CALL_BEGIN,
    CALL_END,
    END_THINK,
    SECTION_BEGIN,
    SECTION_END,
    STOPS,
    THINK,
)

MISSPELT_SECTION = "<|tool_call_section_begin|>"
"""K2 sometimes writes the section's begin so, as ordinary text, before a real call."""
MISSPELT_END = "<|tool_call_section_end|>"
SPELT = (THINK, END_THINK, SECTION_BEGIN, SECTION_END, CALL_BEGIN, CALL_ARGUMENTS, CALL_END, *STOPS)
"""Markers that an answer may hold."""


class SpellingOnly:
    """Stands for the tokenizer of an answer that comes as text: the markers' names, and no ids."""

    specials: Mapping[str, int] = {name: -1 - place for place, name in enumerate(SPELT)}
    stop_ids: tuple[int, ...] = ()

    def token_bytes(self) -> tuple[bytes, ...]:
        return ()


def split_markers(text: str, names: tuple[str, ...]) -> list[str]:
    """The text cut around every marker that it spells; last what may still become one."""
    spelt = (*names, MISSPELT_SECTION, MISSPELT_END)
    parts = [part for part in _any_of(spelt).split(text) if part]
    tail = parts[-1] if parts and parts[-1] not in spelt else ""
    starts = range(max(len(tail) - max(map(len, spelt)), 0), len(tail))
    cut = next((at for at in starts if any(name.startswith(tail[at:]) for name in spelt)), len(tail))
    if tail:
        parts[-1:] = [tail[:cut]] if cut else []
    return [*parts, tail[cut:]]


@functools.lru_cache(maxsize=8)
def _any_of(spelt: tuple[str, ...]) -> re.Pattern[str]:
    whole = "|".join(re.escape(name) for name in sorted(spelt, key=len, reverse=True))
    return re.compile(f"({whole})")
