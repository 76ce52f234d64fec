"""The text of PDF, office files and HTML, and what is refused of them."""

from __future__ import annotations

import io
import os
import zipfile

import pypdf
import pytest
from tests.document_files import docx_of, pdf_of, pptx_of, xlsx_of, zip_of

from perilune.chat.documents import aside, limits, office, pdf
from perilune.chat.documents.aside import Document, Readers, packed_kind
from perilune.chat.documents.plain import decoded, html_text, looks_like_html
from perilune.errors import UnsupportedInput


async def read(data: bytes) -> Document:
    kind = packed_kind(data)
    assert kind is not None
    return await Readers().read(kind, data)


@pytest.mark.parametrize("pack", [False, True])
async def test_a_pdf(pack: bool) -> None:
    data = pdf_of("Größe (in m)", "", "Ende", title="Maße", pack=pack)
    assert await read(data) == Document("Größe (in m)\n\n\n\nEnde", "Maße")


async def test_a_word_document() -> None:
    cells = "".join(f"<w:tc><w:p><w:r><w:t>{one}</w:t></w:r></w:p></w:tc>" for one in "ab")
    body = (
        f"<w:tbl><w:tr>{cells}</w:tr></w:tbl><w:p><w:r><w:t>one</w:t><w:tab/><w:t>two</w:t><w:br/>"
        "<w:delText>gone</w:delText></w:r></w:p>"
        "<mc:AlternateContent xmlns:mc='urn:mc'><mc:Choice><w:p><w:r><w:t>box</w:t></w:r></w:p></mc:Choice>"
        "<mc:Fallback><w:p><w:r><w:t>box</w:t></w:r></w:p></mc:Fallback></mc:AlternateContent>"
    )
    found = await read(docx_of("Ægir & Rán", body=body, title="The sea"))
    assert found.title == "The sea"
    assert found.text == "Ægir & Rán\na \tb \t\none\ttwo\n\nbox"


async def test_a_workbook_and_a_presentation() -> None:
    book = xlsx_of({"Käufe": [["What", "Price"], ["tea", 3]], "Empty": []})
    assert (await read(book)).text == "Käufe\nWhat\tPrice\ntea\t3\n\nEmpty"
    assert (await read(pptx_of("first", "second"))).text == "Slide 1\nfirst\n\nSlide 2\nsecond"


async def test_an_open_document() -> None:
    xml = "<d xmlns:t='urn:t'><t:h>Head</t:h><t:p>a<t:s/>b<t:tab/>c</t:p></d>"
    assert (await read(zip_of({"content.xml": xml}))).text == "Head\na b\tc"


def encrypted(password: str) -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf_of("secret")))
    writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    data = io.BytesIO()
    writer.write(data)
    return data.getvalue()


async def test_a_pdf_that_only_forbids_editing_is_read() -> None:
    assert (await read(encrypted(""))).text == "secret"


LAUGHS = '<!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><d>&b;</d>'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encrypted("pass"), "encrypted.*without a password"),
        (pdf_of("", ""), "without text.*OCR"),
        (b"%PDF-1.7 nothing", "cannot be read"),
        (pdf_of("a")[:300], "cannot be read"),
        (b"PK\x03\x04 nothing", "damaged"),
        (docx_of("a" * 1000)[:-30], "damaged"),
        (zip_of({"a.txt": "a"}), "no docx, xlsx"),
        (zip_of({"word/document.xml": "<a>"}), "damaged"),
        (zip_of({"word/document.xml": LAUGHS}), "document type"),
        (zip_of({"word/document.xml": b" " * (4 << 20)}), "unpacks to 200 times"),
        (zip_of({"xl/workbook.xml": "<a/>"}), "damaged"),
        (docx_of(), "holds no text"),
        (zip_of({f"{n}": "" for n in range(limits.MAX_PARTS + 1)}), "more than 10000 parts"),
    ],
)
async def test_refuses(data: bytes, words: str) -> None:
    with pytest.raises(UnsupportedInput, match=words):
        await read(data)


@pytest.mark.parametrize(
    ("head", "words"), [(b"\xd0\xcf\x11\xe0...", "old or encrypted"), (b"{\\rtf1", "RTF")]
)
def test_known_formats_that_are_not_read(head: bytes, words: str) -> None:
    with pytest.raises(UnsupportedInput, match=words):
        packed_kind(head)


def test_limits_of_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "MAX_PAGES", 2)
    with pytest.raises(UnsupportedInput, match="more than 2 pages"):
        pdf.pdf_text(pdf_of("a", "b", "c"))
    monkeypatch.setattr(limits, "MAX_TEXT", 10)
    with pytest.raises(UnsupportedInput, match="characters of text"):
        office.office_text(docx_of("a" * 6, "b" * 6))
    monkeypatch.setattr(office, "MAX_UNPACKED", 100)
    with pytest.raises(UnsupportedInput, match="when it is unpacked"):
        office.office_text(docx_of("a" * 100))


def test_a_part_that_lies_about_its_size_is_not_read_past_it() -> None:
    data = bytearray(docx_of("a" * 5000))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = archive.getinfo("word/document.xml").file_size.to_bytes(4, "little")
    assert data.count(size) == 2
    with pytest.raises(UnsupportedInput, match="damaged"):
        office.office_text(bytes(data.replace(size, (100).to_bytes(4, "little"))))


async def test_a_document_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "WALL_S", 0.01)
    with pytest.raises(UnsupportedInput, match="more than 60 s"):
        await read(pdf_of("a"))


async def test_the_reading_process_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERILUNE_MODEL_KEY", "secret")
    assert "secret" not in str(aside._environment()) and "PERILUNE_MODEL_KEY" in os.environ


def test_html() -> None:
    page = (
        "<!doctype html><html><head><title>A &amp; B\n page</title><style>p {}</style></head><body>"
        "<script>alert('<p>no</p>')</script><h1>Head</h1><p>One\nline</p><ul><li>a<li>b</ul>"
        "<noscript>none</noscript><table><tr><td>1</td><td>2</td></tr></table></body></html>"
    )
    assert looks_like_html(page)
    assert html_text(page) == ("A & B page", "Head\nOne line\na\nb\n1 2")


def test_decoded() -> None:
    assert decoded("ä".encode("utf-16")) == "ä"
    assert decoded(b"\xef\xbb\xbfa") == "a"
    assert decoded(b"\xff") is None and decoded(b"a\0b") is None
