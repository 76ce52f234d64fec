"""Reading multipart/form-data: the few fields and the one file of an upload."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser

from perilune.errors import InputError

MAX_PARTS = 16
MAX_HEAD_BYTES = 8192
MAX_BOUNDARY = 70
"""RFC 2046."""


@dataclass(frozen=True)
class FormPart:
    data: memoryview
    """A view of the body: nothing is copied."""
    filename: str | None
    """None for a plain field."""


def boundary_of(content_type: str) -> bytes:
    """Raises InputError for a content type that is not multipart/form-data with a boundary."""
    head = Message()
    head["content-type"] = content_type
    boundary = head.get_boundary() if head.get_content_type() == "multipart/form-data" else None
    if not boundary or len(boundary) > MAX_BOUNDARY or not boundary.isascii():
        raise InputError(
            "is not multipart/form-data with a boundary",
            field="content-type",
            mend="send a form with the fields file and purpose",
        )
    return boundary.encode()


def form_of(body: bytes, boundary: bytes) -> dict[str, FormPart]:
    """The form's parts by name. Raises InputError for what is no whole form."""
    parts: dict[str, FormPart] = {}
    for raw in _raw_parts(body, boundary):
        name, part = _part(body, *raw)
        if name in parts:
            raise InputError("is sent twice", field=name, mend="send it once")
        parts[name] = part
        if len(parts) > MAX_PARTS:
            raise InputError(f"the form has more than {MAX_PARTS} parts", mend="send file and purpose only")
    return parts


def _raw_parts(body: bytes, boundary: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each part, its head included."""
    opening, delimiter = b"--" + boundary, b"\r\n--" + boundary
    if body.startswith(opening):
        at = len(opening)
    else:
        first = body.find(delimiter)  # after a preamble, which means nothing
        if first < 0:
            raise _broken("its boundary does not occur")
        at = first + len(delimiter)
    while not body.startswith(b"--", at):
        if not body.startswith(b"\r\n", at):
            raise _broken("a boundary is not followed by a line's end")
        end = body.find(delimiter, at)
        if end < 0:
            raise _broken("it ends before its last boundary")
        yield at + 2, end
        at = end + len(delimiter)


def _part(body: bytes, start: int, end: int) -> tuple[str, FormPart]:
    blank = body.find(b"\r\n\r\n", start, min(end, start + MAX_HEAD_BYTES))
    if blank < 0:
        raise _broken("a part has no head, or too long a one")
    head = HeaderParser().parsestr(body[start:blank].decode("utf-8", "replace"))
    name = head.get_param("name", header="content-disposition")
    if not isinstance(name, str) or not name:
        raise _broken("a part has no name")
    return name, FormPart(memoryview(body)[blank + 4 : end], head.get_filename())


def _broken(why: str) -> InputError:
    return InputError(
        f"the form cannot be read: {why}", field="body", mend="let an HTTP library make the form"
    )
