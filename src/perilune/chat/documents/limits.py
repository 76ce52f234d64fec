"""How much one document may take, and the error that says so."""

from __future__ import annotations

from perilune.errors import UnsupportedInput

MIB = 1 << 20
MAX_PAGES = 2000
"""Of a PDF."""
MAX_TEXT = 8 * MIB
"""Characters that come out of one document: eight times K2.6's context."""
MAX_UNPACKED = 256 * MIB
"""Of all the parts of one office file together."""
MAX_PART_RATIO = 200
"""How many times its packed size a part may be, once it is over a MiB. XML comes to 10 to 50."""
MAX_PARTS = 10_000
CPU_S = 60
"""Of the reading process; then it is killed."""
WALL_S = 120
"""Where the machine is busy, CPU time comes slowly."""
MEMORY = 1024 * MIB
"""Address space of the reading process."""


def over(what: str) -> UnsupportedInput:
    return UnsupportedInput(f"holds more than {what}", field="file", mend="split it and send the parts")


def unreadable(why: str, mend: str) -> UnsupportedInput:
    return UnsupportedInput(why, field="file", mend=mend)


class Sink:
    """Text as it is found, up to the limit."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0

    def add(self, text: str) -> None:
        """Raises UnsupportedInput past the limit."""
        self._size += len(text)
        if self._size > MAX_TEXT:
            raise over(f"{MAX_TEXT // MIB} million characters of text")
        self._parts.append(text)

    def text(self) -> str:
        """Without NUL and halves of surrogate pairs, which are no text and which JSON and models choke on."""
        whole = "".join(self._parts).replace("\0", "")
        return whole.encode("utf-8", "replace").decode("utf-8").strip()
