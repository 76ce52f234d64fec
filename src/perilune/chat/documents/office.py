"""The text of office files: XML parts in a zip. Only for the reading process: see aside.py.

Parts are read as a stream and never as a tree. A part with a document type is refused, so no entity is ever
expanded; a part that unpacks to far more than its packed size is refused too. Cells hold what the file holds:
a date is the number that the program shows as one.
"""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from xml.parsers import expat

from perilune.chat.documents.limits import (
    MAX_PART_RATIO,
    MAX_PARTS,
    MAX_UNPACKED,
    MIB,
    Sink,
    over,
    unreadable,
)

BLOCK = 64 * 1024
SAVE_ANEW = "open it in the program that made it and save it anew"
Attributes = Mapping[str, str]


def office_text(data: bytes) -> tuple[str, str]:
    """(title, text). Raises UnsupportedInput for a zip that is no office file, or a bad one."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _text(_Package(archive))
    except (zipfile.BadZipFile, zlib.error, expat.ExpatError, EOFError, LookupError, ValueError) as error:
        raise unreadable("is an office file that cannot be read: it is damaged", SAVE_ANEW) from error
    except (
        RuntimeError,
        NotImplementedError,
    ) as error:  # zipfile's words for a password, and for rare packings
        raise unreadable("is an office file that is encrypted or packed in a rare way", SAVE_ANEW) from error


def _text(package: _Package) -> tuple[str, str]:
    sink = Sink()
    if "word/document.xml" in package:
        for part in ("word/document.xml", "word/footnotes.xml", "word/endnotes.xml"):
            if part in package:
                package.walk(part, _Paragraphs(sink))
    elif "ppt/presentation.xml" in package:
        for number, slide in enumerate(package.listed("ppt/presentation.xml", "sldId"), start=1):
            sink.add(f"Slide {number}\n")
            package.walk(slide[1], _Paragraphs(sink))
            sink.add("\n")
    elif "xl/workbook.xml" in package:
        strings = _strings(package)
        for name, sheet in package.listed("xl/workbook.xml", "sheet"):
            sink.add(f"{name}\n")
            package.walk(sheet, _Cells(sink, strings))
            sink.add("\n")
    elif "content.xml" in package:
        package.walk("content.xml", _OpenDocument(sink))
    else:
        raise unreadable(
            "is a ZIP file, but no docx, xlsx, pptx or OpenDocument file",
            "send what is in it, or save it as PDF or text",
        )
    return _title(package), sink.text()


class _Reader:
    """Hears of the elements of one part, by names without namespace; attributes keep theirs."""

    def start(self, name: str, attributes: Attributes) -> None: ...

    def end(self, name: str) -> None: ...

    def characters(self, text: str) -> None: ...


class _Package:
    """The parts of one zip, as far as limits go."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        if len(archive.namelist()) > MAX_PARTS:
            raise over(f"{MAX_PARTS} parts")
        self._archive = archive
        self._left = MAX_UNPACKED

    def __contains__(self, part: str) -> bool:
        return part in self._archive.NameToInfo

    def walk(self, part: str, reader: _Reader) -> None:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = _refuse_doctype
        parser.StartElementHandler = lambda name, attributes: reader.start(_local(name), attributes)
        parser.EndElementHandler = lambda name: reader.end(_local(name))
        parser.CharacterDataHandler = reader.characters
        for block in self._blocks(part):
            parser.Parse(block)
        parser.Parse(b"", True)

    def _blocks(self, part: str) -> Iterator[bytes]:
        info = self._archive.getinfo(part)
        if info.file_size > MIB and info.file_size > MAX_PART_RATIO * info.compress_size:
            raise unreadable(f"has a part that unpacks to {MAX_PART_RATIO} times its size", SAVE_ANEW)
        self._left -= info.file_size  # zipfile reads no more than that, whatever is packed
        if self._left < 0:
            raise over(f"{MAX_UNPACKED // MIB} MiB when it is unpacked")
        with self._archive.open(info) as stream:
            while block := stream.read(BLOCK):
                yield block

    def listed(self, part: str, element: str) -> list[tuple[str, str]]:
        """(name, part) of each sheet or slide, in the order of the workbook or presentation."""
        folder, file = posixpath.split(part)
        targets: dict[str, str] = {}
        self.walk(
            f"{folder}/_rels/{file}.rels", _Each("Relationship", lambda one: _relate(one, folder, targets))
        )
        found: list[tuple[str, str]] = []

        def note(one: Attributes) -> None:
            # Beside `r:id`, the reference, slides have an `id` of their own.
            reference = next((value for key, value in one.items() if key.endswith(" id")), "")
            if (target := targets.get(reference)) is not None and target in self:
                found.append((one.get("name", ""), target))

        self.walk(part, _Each(element, note))
        return found


class _Each(_Reader):
    """Calls for every element of that name."""

    def __init__(self, name: str, note: Callable[[Attributes], None]) -> None:
        self._name = name
        self._note = note

    def start(self, name: str, attributes: Attributes) -> None:
        if name == self._name:
            self._note(attributes)


class _Paragraphs(_Reader):
    """Text runs of Word and PowerPoint, which name them alike."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._cells = 0
        self._spare = 0
        """Within what an older program would show instead: the same text a second time."""
        self._in_run = False

    def start(self, name: str, attributes: Attributes) -> None:
        if name == "Fallback":
            self._spare += 1
        elif name == "tc":
            self._cells += 1
        elif name == "t":
            self._in_run = True
        elif name in ("tab", "br", "cr") and not self._spare:
            self._sink.add("\t" if name == "tab" else "\n")

    def end(self, name: str) -> None:
        if name == "Fallback":
            self._spare -= 1
        elif name == "t":
            self._in_run = False
        elif name == "tc":
            self._cells -= 1
            self._sink.add("\t")
        elif name == "tr" or (name == "p" and not self._spare):
            self._sink.add(" " if self._cells and name == "p" else "\n")

    def characters(self, text: str) -> None:
        if self._in_run and not self._spare:
            self._sink.add(text)


class _Strings(_Reader):
    """The shared strings of a workbook."""

    def __init__(self) -> None:
        self.strings: list[str] = []
        self._parts: list[str] = []
        self._in_text = False
        self._size = Sink()

    def start(self, name: str, attributes: Attributes) -> None:
        if name == "si":
            self._parts = []
        self._in_text = name == "t"

    def end(self, name: str) -> None:
        if name == "si":
            self.strings.append("".join(self._parts))
        self._in_text = False

    def characters(self, text: str) -> None:
        if self._in_text:
            self._size.add(text)
            self._parts.append(text)


class _Cells(_Reader):
    """The rows of one sheet: cells with tabs between them."""

    def __init__(self, sink: Sink, strings: list[str]) -> None:
        self._sink = sink
        self._strings = strings
        self._kind = ""
        self._value: list[str] = []
        self._in_value = False
        self._row: list[str] = []

    def start(self, name: str, attributes: Attributes) -> None:
        if name == "c":
            self._kind, self._value = attributes.get("t", "n"), []
        self._in_value = name in ("v", "t")

    def end(self, name: str) -> None:
        self._in_value = False
        if name == "c":
            value = "".join(self._value)
            self._row.append(self._strings[int(value)] if self._kind == "s" and value else value)
        elif name == "row":
            if any(self._row):
                self._sink.add("\t".join(self._row) + "\n")
            self._row = []

    def characters(self, text: str) -> None:
        if self._in_value:
            self._value.append(text)


class _OpenDocument(_Reader):
    """Paragraphs, headings and table rows of odt, ods and odp."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._paragraphs = 0
        self._cells = 0

    def start(self, name: str, attributes: Attributes) -> None:
        if name in ("p", "h"):
            self._paragraphs += 1
        elif name == "table-cell":
            self._cells += 1
        elif name in ("tab", "line-break", "s") and self._paragraphs:
            self._sink.add({"tab": "\t", "line-break": "\n", "s": " "}[name])

    def end(self, name: str) -> None:
        if name in ("p", "h"):
            self._paragraphs -= 1
            self._sink.add(" " if self._cells else "\n")
        elif name == "table-cell":
            self._cells -= 1
            self._sink.add("\t")
        elif name == "table-row":
            self._sink.add("\n")

    def characters(self, text: str) -> None:
        if self._paragraphs:
            self._sink.add(text)


class _Title(_Reader):
    def __init__(self) -> None:
        self.title = ""
        self._in_title = False

    def start(self, name: str, attributes: Attributes) -> None:
        self._in_title = name == "title"

    def end(self, name: str) -> None:
        self._in_title = False

    def characters(self, text: str) -> None:
        if self._in_title and len(self.title) < 500:
            self.title += text


def _title(package: _Package) -> str:
    reader = _Title()
    for part in ("docProps/core.xml", "meta.xml"):
        if part in package:
            package.walk(part, reader)
    return " ".join(reader.title.split())


def _strings(package: _Package) -> list[str]:
    reader = _Strings()
    if "xl/sharedStrings.xml" in package:
        package.walk("xl/sharedStrings.xml", reader)
    return reader.strings


def _relate(one: Attributes, folder: str, targets: dict[str, str]) -> None:
    target = one.get("Target", "")
    whole = target.lstrip("/") if target.startswith("/") else posixpath.normpath(f"{folder}/{target}")
    targets[one.get("Id", "")] = whole


def _local(name: str) -> str:
    return name.rpartition(" ")[2]


def _refuse_doctype(*_: object) -> None:
    raise unreadable("has a part with a document type, which office files have not", SAVE_ANEW)
