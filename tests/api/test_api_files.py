"""Uploaded files over HTTP, as the openai SDK handles them, and `ms://` in chat calls."""

from __future__ import annotations

import asyncio
import base64
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import openai
import pytest
from api_server import Api, serving, talk
from openai import AsyncOpenAI
from tests.document_files import docx_of, pdf_of

from perilune.api import file_store, files, http
from perilune.api.file_kinds import media_type
from perilune.api.file_store import FileStore
from perilune.api.multipart import boundary_of, form_of
from perilune.backends.scripted import ScriptedBackend, scripted_entry
from perilune.chat.messages import ImagePart, Request, VideoPart
from perilune.errors import InputError, JournalCorrupt

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
MP4 = b"\x00\x00\x00\x18ftypisom\r\n--x\r\n" + bytes(range(256))
MIB = 1 << 20
SEEING = ("text", "image", "video")


class Watcher:
    """Keeps what a backend was asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        entry = msgspec.structs.replace(scripted_entry(), modalities=SEEING)
        self.backend = ScriptedBackend(self._answer, entry=entry)

    def _answer(self, request: Request) -> Any:
        self.asked.append(request)
        return talk(request)

    def urls(self) -> list[str]:
        content = self.asked[-1].messages[0].content
        assert isinstance(content, tuple)
        return [part.url for part in content if isinstance(part, ImagePart | VideoPart)]


@asynccontextmanager
async def client(home: Path, watcher: Watcher | None = None) -> AsyncIterator[tuple[Api, AsyncOpenAI]]:
    async with serving(home, (watcher or Watcher()).backend) as api:
        async with AsyncOpenAI(base_url=api.url, api_key=api.key, max_retries=0) as ai:
            yield api, ai


async def send(ai: AsyncOpenAI, name: str, data: bytes, purpose: str) -> openai.types.FileObject:
    return await ai.files.create(file=(name, data), purpose=purpose)  # type: ignore[arg-type]


async def ask(ai: AsyncOpenAI, *media: tuple[str, str], **options: Any) -> Any:
    parts: list[Any] = [{"type": kind, kind: {"url": url}} for kind, url in media]
    parts.append({"type": "text", "text": "What is it?"})
    model = scripted_entry().id
    return await ai.chat.completions.create(
        model=model, messages=[{"role": "user", "content": parts}], **options
    )


async def test_a_file_s_life(tmp_path: Path) -> None:
    text = "name;größe\r\nÆgir;3\r\n"
    async with client(tmp_path) as (_, ai):
        sent = await send(ai, "../Größe.csv", text.encode(), "file-extract")
        assert re.fullmatch(r"file-[0-9a-f]{24}", sent.id)
        assert (sent.object, sent.filename, sent.bytes) == ("file", "Größe.csv", len(text.encode()))
        assert (sent.purpose, sent.status) == ("file-extract", "ready")
        assert await ai.files.retrieve(sent.id) == sent
        content = await ai.files.content(sent.id)
        assert content.response.headers["content-type"] == "text/plain; charset=utf-8"
        assert content.response.headers["x-content-type-options"] == "nosniff"
        assert content.read().decode() == text
    async with client(tmp_path) as (_, ai):  # another process of the same HOME
        assert [one async for one in ai.files.list()] == [sent]
        gone = await ai.files.delete(sent.id)
        assert (gone.id, gone.deleted, gone.object) == (sent.id, True, "file")
        for call in (ai.files.retrieve, ai.files.content, ai.files.delete):
            with pytest.raises(openai.NotFoundError, match=sent.id):
                await call(sent.id)
        assert (await ai.files.list()).data == []
    (project,) = (tmp_path / "files").iterdir()
    assert list(project.iterdir()) == []


async def test_lists_in_pages(tmp_path: Path) -> None:
    async with client(tmp_path) as (_, ai):
        ids = [(await send(ai, f"{n}.txt", b"x", "file-extract")).id for n in range(5)]
        image = await send(ai, "dot.png", PNG, "image")
        everything = [image.id, *ids[::-1]]
        assert [one.id async for one in ai.files.list()] == everything
        assert [one.id async for one in ai.files.list(limit=2)] == everything
        assert [one.id async for one in ai.files.list(order="asc", limit=4)] == everything[::-1]
        assert [one.id async for one in ai.files.list(purpose="image")] == [image.id]
        page = await ai.files.list(limit=2, after=ids[3])
        assert [one.id for one in page.data] == [ids[2], ids[1]]
        for wrong in ({"after": "file-none"}, {"limit": 0}, {"order": "size"}):
            with pytest.raises(openai.BadRequestError, match=next(iter(wrong))):
                await ai.files.list(**wrong)


@pytest.mark.parametrize(
    ("name", "data", "purpose", "words"),
    [
        ("a.txt", b"", "file-extract", "^Error code: 400.*File size is zero"),
        ("a.txt", b"a", "assistants", "Invalid purpose: only 'file-extract', 'image', 'video' accepted"),
        ("a.jsonl", b"{}", "batch", "batches are not served"),
        ("a.pdf", b"%PDF-1.7 ...", "file-extract", "PDF that cannot be read.*save it anew"),
        ("a.docx", b"PK\x03\x04...", "file-extract", "office file that cannot be read"),
        ("a.doc", b"\xd0\xcf\x11\xe0...", "file-extract", "old or encrypted office file"),
        ("a.txt", b"\xff\xfe\x00", "file-extract", "is not text"),
        ("a.bin", b"a\x00b", "file-extract", "is not text"),
        ("a.svg", b"<svg/>", "image", "no image of a known format"),
        ("a.mp4", PNG, "video", "no video of a known format"),
    ],
)
async def test_refuses(tmp_path: Path, name: str, data: bytes, purpose: str, words: str) -> None:
    async with client(tmp_path) as (_, ai):
        with pytest.raises(openai.BadRequestError, match=words):
            await send(ai, name, data, purpose)
        assert (await ai.files.list()).data == []


async def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_store, "MAX_FILES", 2)
    monkeypatch.setattr(file_store, "MAX_PROJECT_BYTES", 10)
    async with client(tmp_path) as (_, ai):
        await send(ai, "a.txt", b"12345678", "file-extract")
        with pytest.raises(openai.BadRequestError, match="together"):
            await send(ai, "b.txt", b"123", "file-extract")
        await send(ai, "b.txt", b"12", "file-extract")
        with pytest.raises(openai.BadRequestError, match="exceeded the max file count 2"):
            await send(ai, "c.txt", b"1", "file-extract")


@pytest.mark.parametrize("size", [MIB + 1, 12 * MIB])
async def test_a_file_that_is_too_large_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Just over the limit, and so far over that the body is not kept; its client sends on regardless."""
    for module in (file_store, files):
        monkeypatch.setattr(module, "MAX_FILE_BYTES", MIB)
    async with client(tmp_path) as (_, ai):
        with pytest.raises(openai.BadRequestError, match="File size is too large, max file size is 1MB"):
            await send(ai, "a.txt", b"a" * size, "file-extract")
        assert (await ai.files.list()).data == []
        await send(ai, "a.txt", b"a" * MIB, "file-extract")


async def test_a_client_that_announces_too_much_and_stops_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "DISCARD_S", 0.1)
    async with client(tmp_path) as (api, _), aiohttp.ClientSession() as web:
        head = api.auth | {"Content-Type": "multipart/form-data; boundary=x"}
        head["Content-Length"] = str(101 * MIB)

        async def little() -> AsyncIterator[bytes]:
            yield b"--x\r\n"

        async with web.post(f"{api.url}/files", headers=head, data=little()) as answer:
            assert answer.status == 400
            error = (await answer.json())["error"]
        assert error["type"] == "invalid_request_error"
        assert "max file size is 100MB" in error["message"]


async def test_files_need_a_key_of_their_own_project(tmp_path: Path) -> None:
    watcher = Watcher()
    async with client(tmp_path, watcher) as (api, ai):
        image = await send(ai, "dot.png", PNG, "image")
        project = api.accounts.organisations.create_project(1, "other", actor="test")
        key = api.accounts.keyring.create("other", ("chat",), project_id=project, actor="test")
        async with AsyncOpenAI(base_url=api.url, api_key=key, max_retries=0) as other:
            assert (await other.files.list()).data == []
            for call in (other.files.retrieve, other.files.content, other.files.delete):
                with pytest.raises(openai.NotFoundError):
                    await call(image.id)
            with pytest.raises(openai.BadRequestError, match="is not found"):
                await ask(other, ("image_url", f"ms://{image.id}"))
        async with AsyncOpenAI(base_url=api.url, api_key="plk_wrong", max_retries=0) as nobody:
            with pytest.raises(openai.AuthenticationError):
                await nobody.files.list()
        assert watcher.asked == []


async def test_a_chat_call_names_files(tmp_path: Path) -> None:
    watcher = Watcher()
    async with client(tmp_path, watcher) as (api, ai):
        image, video = await send(ai, "dot.png", PNG, "image"), await send(ai, "a.mp4", MP4, "video")
        assert (await ai.files.content(video.id)).read() == MP4
        media = (("image_url", f"ms://{image.id}"), ("video_url", f"ms://{video.id}"))
        seen = [
            f"data:image/png;base64,{base64.b64encode(PNG).decode()}",
            f"data:video/mp4;base64,{base64.b64encode(MP4).decode()}",
        ]
        assert (await ask(ai, *media)).choices[0].message.content
        assert watcher.urls() == seen
        assert [chunk async for chunk in await ask(ai, *media, stream=True)]
        assert watcher.urls() == seen
        with pytest.raises(openai.BadRequestError, match=r"messages\[0\].content\[0\]: .*purpose video"):
            await ask(ai, ("image_url", f"ms://{video.id}"))
        await ai.files.delete(image.id)
        for name in (image.id, "../1/" + video.id, ""):
            with pytest.raises(openai.BadRequestError, match=r"messages\[0\].content\[0\]: .*is not found"):
                await ask(ai, ("image_url", f"ms://{name}"))
        assert set(api.rows()) == {"finished"}
        assert len(api.rows()) == len(watcher.asked) == 2


async def test_many_references_cannot_swell_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perilune.api.file_references.MAX_TOGETHER", 3 * len(PNG))
    async with client(tmp_path) as (_, ai):
        url = f"ms://{(await send(ai, 'dot.png', PNG, 'image')).id}"
        assert await ask(ai, *[("image_url", url)] * 3)
        with pytest.raises(openai.BadRequestError, match=r"content\[3\]: .*together"):
            await ask(ai, *[("image_url", url)] * 4)


def test_what_a_crash_cut_is_swept(tmp_path: Path) -> None:
    card = FileStore(tmp_path).add(7, "a.txt", "file-extract", "text/plain", b"abc")
    folder = tmp_path / "7"
    (folder / "file-half").write_bytes(b"half")
    (folder / ".file-draft.json.1").write_bytes(b"{")
    again = FileStore(tmp_path)
    assert again.cards(7) == [card]
    assert sorted(os.listdir(folder)) == [card.id, f"{card.id}.json"]
    assert again.read(7, card.id) == b"abc"
    assert (folder / card.id).stat().st_mode & 0o077 == 0
    (folder / f"{card.id}.json").write_bytes(b"{")
    with pytest.raises(JournalCorrupt, match=card.id):
        FileStore(tmp_path).cards(7)
    assert (folder / card.id).read_bytes() == b"abc"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--y\r\n\r\n--y--",
        b"--x",
        b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nvalue",
        b"--x\r\nContent-Disposition: form-data\r\n\r\nvalue\r\n--x--",
        b"--x\r\nvalue\r\n--x--",
        b"--xy\r\nContent-Disposition: form-data; name=a\r\n\r\nvalue\r\n--x--",
        2 * b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nvalue\r\n" + b"--x--",
        b"".join(b"--x\r\nContent-Disposition: form-data; name=a%d\r\n\r\n\r\n" % n for n in range(17))
        + b"--x--",
    ],
)
def test_refuses_what_is_no_form(body: bytes) -> None:
    with pytest.raises(InputError):
        form_of(body, b"x")


def test_reads_a_form_whatever_the_file_holds() -> None:
    data = b"\r\n\r\n --x \x00\xff--x--\r\n-\r\n"
    head = 'Content-Disposition: form-data; name="file"; filename="ä\\"b.txt"\r\n\r\n'.encode()
    form = form_of(b"before\r\n--x\r\n" + head + data + b"\r\n--x--\r\nafter", b"x")
    assert form["file"].data == data
    assert form["file"].filename == 'ä"b.txt'


@pytest.mark.parametrize("kind", ["", "text/plain", "multipart/form-data", "multipart/form-data; boundary=é"])
def test_refuses_other_content_types(kind: str) -> None:
    with pytest.raises(InputError, match="multipart/form-data"):
        boundary_of(kind)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"RIFF....WEBPVP8 ", "image/webp"),
        (b"GIF89a", "image/gif"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF....AVI LIST", "video/x-msvideo"),
        (b"....ftypqt  ", "video/quicktime"),
        (b"....ftyp3gp5", "video/3gpp"),
        (b"\x1aE\xdf\xa3", "video/webm"),
    ],
)
def test_kinds(data: bytes, kind: str) -> None:
    purpose = kind.partition("/")[0]
    assert media_type(purpose, data) == kind  # type: ignore[arg-type]


async def test_utf16_text_is_kept_as_utf8(tmp_path: Path) -> None:
    async with client(tmp_path) as (_, ai):
        sent = await send(ai, "a.txt", "ä".encode("utf-16"), "file-extract")
        assert (await ai.files.content(sent.id)).read() == "ä".encode()


async def test_the_text_of_documents(tmp_path: Path) -> None:
    async with client(tmp_path) as (_, ai):
        for name, data in (("a.pdf", pdf_of("Größe")), ("a.docx", docx_of("Größe"))):
            sent = await send(ai, name, data, "file-extract")
            assert sent.bytes == len(data)
            content = await ai.files.content(sent.id)
            assert content.response.headers["content-type"] == "text/plain; charset=utf-8"
            assert content.read().decode() == "Größe"


async def test_others_are_answered_while_a_document_is_read(tmp_path: Path) -> None:
    pages = ["word " * 3000] * 30
    async with client(tmp_path) as (_, ai):
        reading = asyncio.create_task(send(ai, "a.pdf", pdf_of(*pages), "file-extract"))
        answered = 0
        while not reading.done():
            await ai.files.list()
            answered += 1
        assert (await reading).purpose == "file-extract" and answered > 5
