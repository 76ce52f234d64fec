"""What the tables of an MP4 or MOV file claim, before FFmpeg believes them.

A few bytes there can stand for any number of samples, and FFmpeg sets memory aside for each: 24 bytes a
sample, again for every edit. All places that look like such a table outside the media data are counted,
wherever they stand, so nothing hides behind an unusual nesting.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from perilune.errors import InputError

MOST_SAMPLES = 2_000_000
"""Of all streams; an hour of sound and pictures has about 350,000."""
MOST_EDITED_SAMPLES = 10_000_000
"""Edits times samples."""
_TABLES = re.compile(rb"stsz|stz2|trun|elst|cmov", re.DOTALL)
_COUNT_AT = {b"stsz": 12, b"stz2": 12, b"trun": 8, b"elst": 8}
"""Bytes from a table's name to its number of entries."""
_USUAL_EDITS = 8


def check_tables(data: bytes, where: str) -> None:
    """Raises InputError when the tables claim more than any video has."""
    samples = edits = 0
    for start, end in _heads(data):
        for found in _TABLES.finditer(data, start, end):
            name = found[0]
            if name == b"cmov":
                raise InputError(
                    "the video's head is compressed", field=where, mend="save it anew, as an ordinary MP4"
                )
            at = found.start() + _COUNT_AT[name]
            count = int.from_bytes(data[at : at + 4], "big")
            if name == b"elst":
                edits += count
            else:
                samples += count
    if samples > MOST_SAMPLES or (edits > _USUAL_EDITS and edits * samples > MOST_EDITED_SAMPLES):
        raise InputError(
            f"the video claims to have {samples:,} samples and {edits:,} edits",
            field=where,
            mend="send a shorter video; if it is short, the file is damaged: save it anew",
        )


def _heads(data: bytes) -> Iterator[tuple[int, int]]:
    """(start, end) of what lies outside the media data at the top."""
    at = 0
    while at + 8 <= len(data):
        size, name, body = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if size == 1:
            size, body = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        end = len(data) if size == 0 else min(at + size, len(data))
        if size and size < body:
            yield at, len(data)
            return
        if name != b"mdat":
            yield at, end
        at = end
