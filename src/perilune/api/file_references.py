"""`ms://FILE_ID` in a chat call: replaced by the file's bytes, as if the client had sent a data URL."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator

import msgspec

from perilune.api.file_store import MAX_FILE_BYTES, FileStore
from perilune.chat.messages import ImagePart, Message, Part, Request, TextPart, VideoPart
from perilune.chat.wire import FILE_REFERENCE
from perilune.errors import InputError, NotFound

MAX_TOGETHER = MAX_FILE_BYTES
"""Of all files that one request names, each counted as often as it is named."""


async def resolve(request: Request, files: FileStore, project: int) -> Request:
    """The request with its own project's files in it; itself when it names none.

    Raises InputError naming the part: no such file, another purpose, or too much together.
    """
    for message in request.messages:
        if isinstance(message.content, tuple) and any(map(_is_reference, message.content)):
            return await asyncio.to_thread(_resolved, request, files, project)
    return request


def _resolved(request: Request, files: FileStore, project: int) -> Request:
    reader = _Reader(files, project)
    messages = tuple(
        msgspec.structs.replace(message, content=tuple(reader.parts(message, f"messages[{place}]")))
        if isinstance(message.content, tuple)
        else message
        for place, message in enumerate(request.messages)
    )
    return msgspec.structs.replace(request, messages=messages)


class _Reader:
    """Reads the files of one request, each once however often it is named."""

    def __init__(self, files: FileStore, project: int) -> None:
        self._files = files
        self._project = project
        self._urls: dict[str, str] = {}
        self._room = MAX_TOGETHER

    def parts(self, message: Message, where: str) -> Iterator[Part]:
        for at, part in enumerate(_parts(message)):
            if isinstance(part, TextPart) or not _is_reference(part):
                yield part
                continue
            place = f"{where}.content[{at}]"
            try:
                yield type(part)(self._url(part, place))
            except NotFound as error:
                raise InputError(error.message, field=place, mend=error.mend) from error

    def _url(self, part: ImagePart | VideoPart, where: str) -> str:
        kind = "image" if isinstance(part, ImagePart) else "video"
        card = self._files.card(self._project, part.url.removeprefix(FILE_REFERENCE))
        if card.purpose != kind:
            raise InputError(
                f"file {card.id} was uploaded with the purpose {card.purpose}",
                field=where,
                mend=f"upload it with the purpose {kind}",
            )
        self._room -= card.bytes
        if self._room < 0:
            raise InputError(
                f"the request's files are together more than {MAX_TOGETHER >> 20} MiB",
                field=where,
                mend="name fewer or smaller ones",
            )
        if card.id not in self._urls:
            data = base64.b64encode(self._files.read(self._project, card.id)).decode()
            self._urls[card.id] = f"data:{card.media_type};base64,{data}"
        return self._urls[card.id]


def _parts(message: Message) -> tuple[Part, ...]:
    return message.content if isinstance(message.content, tuple) else ()


def _is_reference(part: Part) -> bool:
    return not isinstance(part, TextPart) and part.url.startswith(FILE_REFERENCE)
