"""What is text already: its encoding; and HTML, without its tags."""

from __future__ import annotations

import codecs
from html.parser import HTMLParser

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
UNSEEN = frozenset({"script", "style", "template", "noscript", "svg", "head"})
BLOCKS = """address article aside blockquote br dd div dl dt figcaption footer form h1 h2 h3 h4 h5 h6 header
hr li main nav ol p pre section table tr ul"""
BREAKS = frozenset(BLOCKS.split())
CELLS = frozenset({"td", "th"})


def decoded(data: bytes) -> str | None:
    """The text of UTF-8, or of UTF-16 with a byte order mark; None for anything else."""
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def looks_like_html(text: str) -> bool:
    start = text[:500].lstrip("\ufeff \t\r\n").lower()
    return start.startswith(("<!doctype html", "<html"))


def html_text(html: str) -> tuple[str, str]:
    """(title, text) of a page. Scripts, styles and what else nobody sees are left out."""
    reader = _Page()
    reader.feed(html)
    reader.close()
    lines = ("".join(reader.text).replace("\xa0", " ")).split("\n")
    kept = [" ".join(line.split()) for line in lines]
    return " ".join("".join(reader.title).split()), "\n".join(line for line in kept if line)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text: list[str] = []
        self.title: list[str] = []
        self._hidden: list[str] = []
        """Open elements whose text nobody sees."""
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title" and "svg" not in self._hidden:
            self._in_title = True
        elif tag == "body":
            self._hidden.clear()  # a head that was never closed
        elif tag in UNSEEN:
            self._hidden.append(tag)
        elif tag in BREAKS:
            self.text.append("\n")
        elif tag in CELLS:
            self.text.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        elif tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]
        elif tag in BREAKS:
            self.text.append("\n")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title.append(data)
        elif not self._hidden:
            # Line breaks of the source are spaces of the page.
            self.text.append(data.replace("\n", " "))
