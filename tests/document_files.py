"""Small PDF and office files for tests, written here so that every byte is known."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

OFFICE = "http://schemas.openxmlformats.org"
WORD = f'xmlns:w="{OFFICE}/wordprocessingml/2006/main"'
SHEET = f'xmlns="{OFFICE}/spreadsheetml/2006/main" xmlns:r="{OFFICE}/officeDocument/2006/relationships"'
SLIDES = (
    f'xmlns:p="{OFFICE}/presentationml/2006/main" xmlns:a="{OFFICE}/drawingml/2006/main" '
    f'xmlns:r="{OFFICE}/officeDocument/2006/relationships"'
)


def pdf_of(*pages: str, title: str = "", pack: bool = False) -> bytes:
    """A PDF with one line of Latin text on each page."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, text in enumerate(pages):
        shown = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)").encode("cp1252")
        content = b"BT /F1 12 Tf 72 720 Td (" + shown + b") Tj ET" if text else b""
        packing = b""
        if pack:
            content, packing = zlib.compress(content), b" /Filter /FlateDecode"
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % (5 + 2 * number)
        )
        objects.append(b"<< /Length %d%b >>\nstream\n%b\nendstream" % (len(content), packing, content))
    objects.append(b"<< /Title (" + title.encode("cp1252") + b") >>")
    return _numbered(objects)


def _numbered(objects: Sequence[bytes]) -> bytes:
    out, places = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\n" % (len(objects) + 1, len(objects))
    return bytes(out + b"startxref\n%d\n%%%%EOF\n" % table)


def zip_of(parts: Mapping[str, str | bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return data.getvalue()


def docx_of(*paragraphs: str, body: str = "", title: str = "") -> bytes:
    """`body` is XML that comes after the paragraphs."""
    text = "".join(f"<w:p><w:r><w:t>{escape(one)}</w:t></w:r></w:p>" for one in paragraphs)
    parts = {"word/document.xml": f"<w:document {WORD}><w:body>{text}{body}</w:body></w:document>"}
    if title:
        parts["docProps/core.xml"] = (
            f'<c xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{escape(title)}</dc:title></c>'
        )
    return zip_of(parts)


def xlsx_of(sheets: Mapping[str, Sequence[Sequence[str | int]]]) -> bytes:
    """Text as shared strings, numbers as numbers."""
    strings: list[str] = []
    parts: dict[str, str] = {}
    for number, rows in enumerate(sheets.values(), start=1):
        xml = "".join(f"<row>{''.join(_cell(value, strings) for value in row)}</row>" for row in rows)
        parts[f"xl/worksheets/sheet{number}.xml"] = (
            f"<worksheet {SHEET}><sheetData>{xml}</sheetData></worksheet>"
        )
    listed = "".join(
        f'<sheet name={quoteattr(name)} sheetId="{n}" r:id="rId{n}"/>'
        for n, name in enumerate(sheets, start=1)
    )
    parts["xl/workbook.xml"] = f"<workbook {SHEET}><sheets>{listed}</sheets></workbook>"
    parts["xl/_rels/workbook.xml.rels"] = relations(
        {f"rId{n}": f"worksheets/sheet{n}.xml" for n in range(1, len(sheets) + 1)}
    )
    shared = "".join(f"<si><t>{escape(one)}</t></si>" for one in strings)
    parts["xl/sharedStrings.xml"] = f"<sst {SHEET}>{shared}</sst>"
    return zip_of(parts)


def _cell(value: str | int, strings: list[str]) -> str:
    if isinstance(value, int):
        return f"<c><v>{value}</v></c>"
    strings.append(value)
    return f'<c t="s"><v>{len(strings) - 1}</v></c>'


def pptx_of(*slides: str) -> bytes:
    """The slides' files are numbered the other way round: only the presentation knows their order."""
    files = {n: f"slides/slide{len(slides) - n}.xml" for n in range(len(slides))}
    parts = {
        f"ppt/{files[n]}": f"<p:sld {SLIDES}><a:p><a:r><a:t>{escape(text)}</a:t></a:r></a:p></p:sld>"
        for n, text in enumerate(slides)
    }
    listed = "".join(f'<p:sldId id="{256 + n}" r:id="rId{n}"/>' for n in files)
    parts["ppt/presentation.xml"] = (
        f"<p:presentation {SLIDES}><p:sldIdLst>{listed}</p:sldIdLst></p:presentation>"
    )
    parts["ppt/_rels/presentation.xml.rels"] = relations({f"rId{n}": file for n, file in files.items()})
    return zip_of(parts)


def relations(targets: Mapping[str, str]) -> str:
    listed = "".join(f'<Relationship Id="{name}" Target="{target}"/>' for name, target in targets.items())
    return f'<Relationships xmlns="{OFFICE}/package/2006/relationships">{listed}</Relationships>'
