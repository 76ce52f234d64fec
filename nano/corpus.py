"""Rename records from installed Python files: names, the lines that hold them, paths.

The files are whatever Python the machine has; none of their text is published. Whole packages are held
out: evaluation uses their files, and only names that no training file contains.
"""

from __future__ import annotations

import argparse
import keyword
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

HELD_OUT = frozenset(
    ["networkx", "jinja2", "email", "unittest", "http", "xml", "asyncio", "logging", "fsspec", "filelock"]
)
"""Packages that training never sees."""
SKIPPED = frozenset({"test", "tests", "__pycache__", "site-packages", "dist-packages", "idlelib"})
SMALLEST, LARGEST = 300, 150_000
"""Characters of a usable file."""
LONGEST_LINE = 160
MOST_HITS = 9
MOST_FILES = 5_000
MOST_OF_ONE_PACKAGE = 700

_IDENTIFIER = re.compile(r"(?<!\w)[A-Za-z_][A-Za-z0-9_]*")
_NAMED = re.compile(r"(?:def|class) ([A-Za-z_]\w*)|^\s*([A-Za-z_]\w*) = |[(,] ?([A-Za-z_]\w*)=[^=]")
_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


class Record(msgspec.Struct, frozen=True):
    """A name in a file, and the lines that hold it as a whole word."""

    path: str
    name: str
    hits: tuple[tuple[int, str], ...]
    """(line number, whole line)."""
    text: str = ""
    """The whole file; kept for held-out records only."""


class Corpus(msgspec.Struct, frozen=True):
    records: tuple[Record, ...]
    held_records: tuple[Record, ...]
    names: tuple[str, ...]
    held_names: tuple[str, ...]
    """Names that occur in no training file."""
    words: tuple[str, ...]
    held_words: tuple[str, ...]
    paths: tuple[str, ...]
    held_paths: tuple[str, ...]


def build(folders: Sequence[Path], seed: int = 0) -> tuple[Corpus, list[str]]:
    """The corpus of all `.py` files below the folders, and the training texts (for the tokenizer)."""
    rng = random.Random(seed)
    train: list[tuple[str, str]] = []
    held: list[tuple[str, str]] = []
    for path, text, is_held in _files(folders):
        (held if is_held else train).append((path, text))
    train.sort()
    rng.shuffle(train)
    train = _balanced(train)[:MOST_FILES]
    held.sort()
    seen = {name for _, text in train for name in _IDENTIFIER.findall(text)}
    records = tuple(record for path, text in train for record in _records(path, text, 8, rng))
    fresh = [
        record
        for path, text in held
        for record in _records(path, text, 3, rng, keep_text=True)
        if record.name not in seen
    ]
    names = _names(train)
    held_names = tuple(name for name in _names(held) if name not in seen)
    words = _words(names)
    return Corpus(
        records=records,
        held_records=tuple(fresh),
        names=names,
        held_names=held_names,
        words=words,
        held_words=tuple(set(_words(held_names)) - set(words)) or words,
        paths=tuple(path for path, _ in train),
        held_paths=tuple(path for path, _ in held),
    ), [text for _, text in train]


def _balanced(files: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """No more than MOST_OF_ONE_PACKAGE files of one package: the largest would drown the others."""
    taken: Counter[str] = Counter()
    kept = []
    for path, text in files:
        package = path.split("/", 1)[0]
        taken[package] += 1
        if taken[package] <= MOST_OF_ONE_PACKAGE:
            kept.append((path, text))
    return kept


def _files(folders: Sequence[Path]) -> Iterator[tuple[str, str, bool]]:
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder)
            if SKIPPED & set(inside.parts) or path.is_symlink():
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if SMALLEST <= len(text) <= LARGEST and text.isascii():
                yield inside.as_posix(), text, bool(HELD_OUT & set(inside.parts))


def _records(
    path: str, text: str, most: int, rng: random.Random, *, keep_text: bool = False
) -> Iterator[Record]:
    lines = text.splitlines()
    places: dict[str, list[int]] = {}
    for number, line in enumerate(lines, start=1):
        for name in set(_IDENTIFIER.findall(line)):
            places.setdefault(name, []).append(number)
    named = {name for line in lines for groups in _NAMED.findall(line) for name in groups if name}
    usable = [name for name in sorted(named) if _usable(name, places.get(name, []), lines)]
    rng.shuffle(usable)
    for name in usable[:most]:
        hits = tuple((number, lines[number - 1]) for number in places[name])
        yield Record(path, name, hits, text if keep_text else "")


def _usable(name: str, places: list[int], lines: list[str]) -> bool:
    return (
        1 <= len(places) <= MOST_HITS
        and 2 < len(name) < 26
        and not name.startswith("__")
        and not keyword.iskeyword(name)
        and all(len(lines[number - 1]) <= LONGEST_LINE for number in places)
    )


def _names(files: list[tuple[str, str]]) -> tuple[str, ...]:
    """Defined or assigned names, each once."""
    found = {
        name
        for _, text in files
        for line in text.splitlines()
        for groups in _NAMED.findall(line)
        for name in groups
        if 2 < len(name) < 26 and not keyword.iskeyword(name) and not name.startswith("__")
    }
    return tuple(sorted(found))


def _words(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        sorted({part.lower() for name in names for part in _PARTS.findall(name) if 2 < len(part) < 12})
    )


def load(path: Path) -> Corpus:
    return msgspec.msgpack.decode(path.read_bytes(), type=Corpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, default=Path("nano/work"))
    options = parser.parse_args()
    corpus, texts = build(options.folders)
    options.work.mkdir(parents=True, exist_ok=True)
    (options.work / "corpus.msgpack").write_bytes(msgspec.msgpack.encode(corpus))
    (options.work / "texts.msgpack").write_bytes(msgspec.msgpack.encode(texts))
    print(
        f"{len(texts)} training files, {len(corpus.records)} records, {len(corpus.names)} names; "
        f"{len(corpus.held_records)} held-out records, {len(corpus.held_names)} names"
    )


if __name__ == "__main__":
    main()
