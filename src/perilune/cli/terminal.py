"""What models and endpoints say, before it goes to a terminal: there, some characters are commands."""

from __future__ import annotations

import re
from typing import TextIO

COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All control characters but tab and line feed: they move the cursor, write the clipboard, set the title."""
SHOWN = "\N{REPLACEMENT CHARACTER}"


def harmless(text: str, out: TextIO) -> str:
    """The text as it may be written to `out`: for a terminal without commands, else as it is."""
    return COMMANDS.sub(SHOWN, text) if out.isatty() else text
