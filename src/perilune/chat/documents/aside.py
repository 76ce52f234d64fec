"""Packed documents are read in a process of their own: a file that a parser chokes on costs time and memory
there, up to limits.py, and never the event loop's. That process gets the bytes and nothing else, no setting
and no key.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Literal

import msgspec

import perilune
from perilune.chat.documents.limits import CPU_S, WALL_S, unreadable
from perilune.errors import UnsupportedInput

Kind = Literal["pdf", "office"]
HEADS: tuple[tuple[bytes, Kind], ...] = ((b"%PDF-", "pdf"), (b"PK\x03\x04", "office"))
FOREIGN = (
    (
        b"\xd0\xcf\x11\xe0",
        "is an old or encrypted office file",
        "save it as docx, xlsx, pptx or PDF, no password",
    ),
    (b"{\\rtf", "is an RTF file", "save it as docx, PDF or text"),
)
"""Formats whose text is not taken out."""
MOST_AT_ONCE = 2
"""Reading processes of one event loop; more documents wait."""


class Document(msgspec.Struct, frozen=True):
    text: str
    title: str = ""


class _Answer(msgspec.Struct):
    text: str = ""
    title: str = ""
    error: str = ""
    mend: str = ""


def packed_kind(data: bytes) -> Kind | None:
    """What reads it; None for what is no packed document. Raises UnsupportedInput for formats that are known
    and not read."""
    for head, why, mend in FOREIGN:
        if data.startswith(head):
            raise unreadable(why, mend)
    return next((kind for head, kind in HEADS if data.startswith(head)), None)


class Readers:
    """At most so many reading processes at one time. Belongs to one event loop."""

    def __init__(self, most: int = MOST_AT_ONCE) -> None:
        self._free = asyncio.Semaphore(most)

    async def read(self, kind: Kind, data: bytes) -> Document:
        """The document's text. Cancelling it ends the process. Raises UnsupportedInput, saying what to do."""
        async with self._free:
            return await _read(kind, data)


async def _read(kind: Kind, data: bytes) -> Document:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "perilune.chat.documents", kind),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=_environment(),
    )
    try:
        async with asyncio.timeout(WALL_S):
            output, _ = await process.communicate(data)
    except TimeoutError as error:
        raise _too_slow() from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        answer = msgspec.json.decode(output, type=_Answer)
    except msgspec.DecodeError as error:  # it was killed before it could say anything
        raise _too_slow() from error
    if answer.error:
        raise unreadable(answer.error, answer.mend)
    return Document(answer.text, answer.title)


def _too_slow() -> UnsupportedInput:
    return unreadable(f"takes more than {CPU_S} s to read", "split it, or save it as text and send that")


def _environment() -> dict[str, str]:
    """Only where this perilune lies, when it runs from a source tree."""
    root = Path(perilune.__file__).parent.parent
    installed = root.name in ("site-packages", "dist-packages")
    path = {} if installed else {"PYTHONPATH": str(root)}
    return path | {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
