"""What a data URL is: read strictly, for whoever gets it next may read other things into it."""

from __future__ import annotations

import re

from perilune.errors import InputError

_WORD = r"[A-Za-z0-9!#$&^_.+-]+"
_HEAD = re.compile(rf"data:({_WORD}/{_WORD})?(;{_WORD}=(\"[^\",;]*\"|{_WORD}))*;base64,")


def start_of_bytes(url: str, where: str) -> int:
    """The place after the comma, where base64 begins. Raises InputError for what is no base64 data URL."""
    head = _HEAD.match(url)
    if head is None:
        raise InputError(
            "is not a base64 data URL", field=where, mend="send data:<type>;base64,<the file's bytes>"
        )
    return head.end()
