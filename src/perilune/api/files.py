"""/v1/files: upload, list, look at, read, delete. A file belongs to the project of the key that sent it.

Of a `file-extract` file only its text is kept; of images and videos, the bytes as they were sent.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple, cast, get_args
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from perilune.api.auth import principal_of
from perilune.api.file_kinds import TEXT, Purpose, media_type, text_of
from perilune.api.file_store import MAX_FILE_BYTES, MAX_FILES, Card, FileStore, check_size, too_large
from perilune.api.http import CLOSE, discard_body, header, read_body, send_json
from perilune.api.multipart import boundary_of, form_of
from perilune.chat.documents.aside import Readers
from perilune.chat.documents.plain import decoded
from perilune.errors import InputError, UnsupportedInput

FORM_SLACK = 64 * 1024
"""What a form may have around its file."""


class UploadFile:
    def __init__(self, files: FileStore) -> None:
        self._files = files
        self._readers = Readers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        boundary = boundary_of(header(scope, b"content-type"))
        refusal = HTTPException(400, str(too_large()), headers=CLOSE)
        try:
            body = await read_body(scope, receive, MAX_FILE_BYTES + FORM_SLACK, refusal)
        except HTTPException as problem:
            if problem is refusal:
                await discard_body(receive)
            raise
        project = principal_of(scope).project_id
        sent = await asyncio.to_thread(_upload, body, boundary)
        del body
        kind, data = await self._kept(sent)
        card = await asyncio.to_thread(
            self._files.add, project, sent.filename, sent.purpose, kind, data, size=len(sent.data)
        )
        await send_json(send, _object(card))

    async def _kept(self, sent: _Upload) -> tuple[str, bytes]:
        """(content type, what is kept of it)."""
        if sent.purpose == "file-extract":
            return TEXT, await text_of(sent.data, self._readers)
        return media_type(sent.purpose, sent.data), sent.data


class ListFiles:
    def __init__(self, files: FileStore) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cards = await asyncio.to_thread(self._files.cards, principal_of(scope).project_id)
        page, more = _page(cards, scope["query_string"])
        await send_json(send, {"object": "list", "data": [_object(card) for card in page], "has_more": more})


class OneFile:
    def __init__(self, files: FileStore) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        project, file_id = principal_of(scope).project_id, scope["path_params"]["id"]
        await send_json(send, _object(await asyncio.to_thread(self._files.card, project, file_id)))


class FileContent:
    def __init__(self, files: FileStore) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        project, file_id = principal_of(scope).project_id, scope["path_params"]["id"]
        kind, data = await asyncio.to_thread(_content, self._files, project, file_id)
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", b"%d" % len(data)),
            # What strangers uploaded is never shown as a page of this server.
            (b"content-disposition", b"attachment"),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})


class DeleteFile:
    def __init__(self, files: FileStore) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        project, file_id = principal_of(scope).project_id, scope["path_params"]["id"]
        await asyncio.to_thread(self._files.delete, project, file_id)
        await send_json(send, {"id": file_id, "object": "file", "deleted": True})


class _Upload(NamedTuple):
    filename: str
    purpose: Purpose
    data: bytes


def _upload(body: bytes, boundary: bytes) -> _Upload:
    form = form_of(body, boundary)
    if "purpose" not in form:
        raise InputError("is missing", field="purpose", mend=f"send one of {', '.join(get_args(Purpose))}")
    if "file" not in form or form["file"].filename is None:
        raise InputError("is missing", field="file", mend="send a part named file, with a file name")
    purpose = _purpose(bytes(form["purpose"].data[:100]))
    check_size(len(form["file"].data))
    return _Upload(form["file"].filename, purpose, bytes(form["file"].data))


def _purpose(raw: bytes) -> Purpose:
    name = raw.decode("utf-8", "replace").strip()
    if name in get_args(Purpose):
        return cast(Purpose, name)
    if name == "batch":
        raise UnsupportedInput("batches are not served by this build", field="purpose")
    known = ", ".join(f"'{one}'" for one in get_args(Purpose))
    raise InputError(f"Invalid purpose: only {known} accepted", field="purpose")


def _content(files: FileStore, project: int, file_id: str) -> tuple[str, bytes]:
    card, data = files.card(project, file_id), files.read(project, file_id)
    if card.purpose != "file-extract":
        return card.media_type, data
    text = decoded(data)  # earlier builds kept UTF-16 as it came
    return card.media_type, data if text is None else text.encode()


def _page(cards: list[Card], query: bytes) -> tuple[list[Card], bool]:
    """The part of the list that `purpose`, `order`, `after` and `limit` ask for, and whether more follows."""
    asked = {name: values[-1] for name, values in parse_qs(query.decode("latin-1"), True).items()}
    if purpose := asked.get("purpose"):
        cards = [card for card in cards if card.purpose == purpose]
    if asked.get("order", "desc") not in ("asc", "desc"):
        raise InputError("is neither asc nor desc", field="order", mend="leave it out for the newest first")
    if asked.get("order") == "asc":
        cards = cards[::-1]
    if after := asked.get("after"):
        ids = [card.id for card in cards]
        if after not in ids:
            raise InputError("is no file of this list", field="after", mend="send the id of one that is")
        cards = cards[ids.index(after) + 1 :]
    limit = asked.get("limit", str(MAX_FILES))
    if not limit.isascii() or not limit.isdigit() or len(limit) > 6 or int(limit) < 1:
        raise InputError("is not a whole number from 1", field="limit", mend="leave it out to get all")
    return cards[: int(limit)], len(cards) > int(limit)


def _object(card: Card) -> dict[str, Any]:
    return {
        "id": card.id,
        "object": "file",
        "bytes": card.bytes,
        "created_at": card.created_at,
        "filename": card.filename,
        "purpose": card.purpose,
        "status": "ready",
        "status_details": None,
    }
