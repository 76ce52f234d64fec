"""The numbered checklist of the Kimi API: files. Each test bears its statement's number."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from kimi_server import Answer, Kimi, kimi_serving
from tests.document_files import docx_of, pdf_of

from perilune.api import file_store, files

pytestmark = pytest.mark.asyncio(loop_scope="module")

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
MIB = 1 << 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def k26(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kimi]:
    async with kimi_serving(tmp_path_factory.mktemp("kimi")) as kimi:
        yield kimi


async def test_059_an_uploaded_image(k26: Kimi) -> None:
    sent = (await send(k26, "POST", form(PIXEL, "image", "dot.png"))).body
    parts = [
        {"type": "image_url", "image_url": {"url": f"ms://{sent['id']}"}},
        {"type": "text", "text": "What is it?"},
    ]
    seen: list[Any] = [{"role": "user", "content": parts}]
    assert (await k26.ask(messages=seen)).message["content"]
    gone = (await send(k26, "DELETE", path=f"/v1/files/{sent['id']}")).body
    assert (gone["object"], gone["deleted"]) == ("file", True)
    (await k26.ask(messages=seen)).refused(sent["id"])


async def test_060_files_of_no_size_and_too_large(k26: Kimi, monkeypatch: pytest.MonkeyPatch) -> None:
    (await send(k26, "POST", form(b"", "file-extract", "a.txt"))).refused("File size is zero")
    assert file_store.MAX_FILE_BYTES == 100 * MIB
    for module in (file_store, files):
        monkeypatch.setattr(module, "MAX_FILE_BYTES", MIB)
    answer = await send(k26, "POST", form(b"a" * (MIB + 1), "file-extract", "a.txt"))
    answer.refused("File size is too large, max file size is")


async def test_061_the_text_of_a_file(k26: Kimi) -> None:
    sent = (await send(k26, "POST", form("Grüße\n".encode(), "file-extract", "a.txt"))).body
    assert (sent["object"], sent["purpose"], sent["status"]) == ("file", "file-extract", "ready")
    content = await k26.get(f"/v1/files/{sent['id']}/content")
    assert content.headers["content-type"].startswith("text/plain") and content.text == "Grüße\n"
    for name, data in (("a.pdf", pdf_of("Grüße")), ("a.docx", docx_of("Grüße"))):
        sent = (await send(k26, "POST", form(data, "file-extract", name))).body
        content = await k26.get(f"/v1/files/{sent['id']}/content")
        assert content.headers["content-type"].startswith("text/plain") and content.text == "Grüße"


def form(data: bytes, purpose: str, name: str) -> aiohttp.FormData:
    fields = aiohttp.FormData()
    fields.add_field("purpose", purpose)
    fields.add_field("file", io.BytesIO(data), filename=name, content_type="application/octet-stream")
    return fields


async def send(k26: Kimi, method: str, data: Any = None, path: str = "/v1/files") -> Answer:
    url, headers = k26.api.root + path, k26.api.auth
    async with aiohttp.ClientSession() as web:
        async with web.request(method, url, data=data, headers=headers) as answer:
            return Answer(answer.status, answer.headers, await answer.text())
