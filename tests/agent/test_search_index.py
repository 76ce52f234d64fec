"""The local index: made from real folders with real FTS5, kept true, and asked."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.document_files import docx_of, pdf_of

from perilune.agent.search import index_tables, indexing, local
from perilune.agent.search.index_tables import PASSAGE, passages, spaced, terms_of, unspaced
from perilune.agent.search.indexing import Done, forget
from perilune.agent.search.local import LocalProvider
from perilune.agent.search.provider import Hit
from perilune.errors import InputError, SearchFailed, StoreError

HOME = "home"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "moon.md").write_text("# The Moon\n\nPerilune is nearest to the Moon.\n")
    (folder / "deep" / "sun.html").write_text(
        "<html><title>The Sun</title><script>moon()</script><body><p>Perihelion is nearest to the Sun."
    )
    (folder / "deep" / "er" / "plain.txt").write_text("Größe über alles")
    (folder / "paper.pdf").write_bytes(pdf_of("Apogee is farthest.", title="On orbits"))
    (folder / "letter.docx").write_bytes(docx_of("Dear astronomer"))
    return folder


async def index(tmp_path: Path, *folders: Path) -> Done:
    return await indexing.index(tmp_path / HOME / index_tables.FILE_NAME, folders)


async def find(tmp_path: Path, query: str, limit: int = 8) -> list[Hit]:
    provider = LocalProvider(tmp_path / HOME / index_tables.FILE_NAME, timeout_s=10)
    return list(await provider.search(query, limit))


async def paths(tmp_path: Path, query: str) -> list[str]:
    return [hit.url for hit in await find(tmp_path, query)]


async def test_all_kinds_are_found(tmp_path: Path, notes: Path) -> None:
    done = await index(tmp_path, notes)
    assert (done.added, done.documents, done.skipped, done.folders) == (5, 5, {}, [str(notes)])
    assert await find(tmp_path, "perilune") == [
        Hit("The Moon", "notes/moon.md", "# The Moon\n\nPerilune is nearest to the Moon.")
    ]
    assert await find(tmp_path, "perihelion") == [
        Hit("The Sun", "notes/deep/sun.html", "Perihelion is nearest to the Sun.")
    ]
    assert await paths(tmp_path, "GROSSE grosse größe Grösse") == ["notes/deep/er/plain.txt"]
    assert (await find(tmp_path, "apogee"))[0].title == "On orbits"
    assert await paths(tmp_path, "astronomers") == ["notes/letter.docx"]  # by its stem
    assert await paths(tmp_path, "letter") == ["notes/letter.docx"]  # by its name


async def test_a_second_run_takes_only_what_changed(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await index(tmp_path, notes)
    read: list[str] = []
    whole = indexing._read
    monkeypatch.setattr(
        indexing, "_read", lambda path, size: (read.append(Path(path).name), whole(path, size))[1]
    )
    done = await index(tmp_path)  # the folders that it knows
    assert (done.unchanged, done.added, done.changed, read) == (5, 0, 0, [])
    (notes / "moon.md").write_text("# The Moon\n\nNow it tells of craters.\n")
    (notes / "letter.docx").unlink()
    (notes / "new.txt").write_text("Aphelion")
    os.utime(notes / "paper.pdf", (1, 1))  # as a checkout leaves it: another time, the same content
    done = await index(tmp_path, notes)
    assert (done.added, done.changed, done.unchanged, done.removed) == (1, 1, 3, 1)
    assert sorted(read) == ["moon.md", "new.txt", "paper.pdf"]
    assert await paths(tmp_path, "perilune") == []
    assert await paths(tmp_path, "craters") == ["notes/moon.md"]
    assert await paths(tmp_path, "astronomer") == []
    done = await index(tmp_path, notes)
    assert (done.unchanged, done.removed) == (5, 0)


async def test_what_is_passed_by(tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "MAX_TEXT_FILE", 1000)
    monkeypatch.setattr(indexing, "MAX_FILE", 5000)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("findme")
    for name, data in {
        ".hidden": b"findme",
        "binary": b"findme\0\1",
        "late-binary": b"findme" + b"a" * 500 + b"\xff",
        "empty": b"",
        "log": b"findme " * 200,
        "large": b"findme " * 1000,
        "locked.pdf": b"%PDF-1.4 findme",
        "old.doc": b"\xd0\xcf\x11\xe0 findme",
        ".git/config": b"findme",
        "node_modules/a.js": b"findme",
    }.items():
        (notes / name).parent.mkdir(exist_ok=True)
        (notes / name).write_bytes(data)
    (notes / "link").symlink_to(outside)
    (notes / "link.txt").symlink_to(outside / "secret.txt")
    (notes / os.fsdecode(b"\xff.txt")).write_text("findme")
    os.mkfifo(notes / "pipe")
    done = await index(tmp_path, notes)
    assert await paths(tmp_path, "findme") == [] and done.added == 5
    assert done.skipped == {
        "not text": 2,
        "empty": 1,
        "text of more than 0 MiB": 1,
        "larger than 0 MiB": 1,
        "is a PDF that cannot be read: it is damaged or cut off": 1,
        "is an old or encrypted office file": 1,
        "a name that is not UTF-8": 1,
    }


async def test_home_is_never_indexed(tmp_path: Path) -> None:
    (tmp_path / HOME).mkdir()
    (tmp_path / HOME / "keys.json").write_text('{"project_key": "plk_findme"}')
    (tmp_path / "a.txt").write_text("other")
    assert (await index(tmp_path, tmp_path)).added == 1
    assert await paths(tmp_path, "plk_findme project_key") == []


async def test_several_folders_and_forgetting_one(tmp_path: Path, notes: Path) -> None:
    other = tmp_path / "notes2"  # a name that begins alike
    other.mkdir()
    (other / "mars.txt").write_text("Periareion")
    (tmp_path / "again").symlink_to(notes)
    assert (await index(tmp_path, notes, other, tmp_path / "again")).documents == 6
    done = forget(tmp_path / HOME / index_tables.FILE_NAME, notes)
    assert (done.removed, done.documents, done.folders) == (5, 1, [str(other)])
    assert await paths(tmp_path, "perilune periareion") == ["notes2/mars.txt"]
    with pytest.raises(InputError, match="is not in the index"):
        forget(tmp_path / HOME / index_tables.FILE_NAME, notes)


async def test_refuses_what_is_no_folder(tmp_path: Path, notes: Path) -> None:
    with pytest.raises(InputError, match="nothing is indexed yet"):
        await index(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        await index(tmp_path, notes / "moon.md")
    assert not (tmp_path / HOME).exists()
    await index(tmp_path, notes)
    notes.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"not a folder.*--forget"):
        await index(tmp_path)
    assert await paths(tmp_path, "perilune") == [
        "notes/moon.md"
    ]  # nothing is lost by a disk that is not there


async def test_a_run_that_was_killed_goes_on(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = indexing._document
    count = 0

    async def failing(*given: object) -> object:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return await real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(indexing, "_document", failing)
    with pytest.raises(KeyboardInterrupt):
        await index(tmp_path, notes)
    monkeypatch.setattr(indexing, "_document", real)
    done = await index(tmp_path, notes)
    assert (done.unchanged, done.added, done.documents) == (2, 3, 5)


async def test_two_runs_at_once_and_searches_between(tmp_path: Path, notes: Path) -> None:
    for number in range(40):
        (notes / f"{number}.txt").write_text(f"orbit {number}")
    await index(tmp_path, notes)
    for number in range(40):
        (notes / f"{number}.txt").write_text(f"orbit number {number}")
    found = await asyncio.gather(
        index(tmp_path, notes), index(tmp_path, notes), *(find(tmp_path, "orbit") for _ in range(20))
    )
    assert all(len(hits) == 8 for hits in found[2:] if isinstance(hits, list))
    assert (await index(tmp_path, notes)).documents == 45
    with sqlite3.connect(tmp_path / HOME / index_tables.FILE_NAME) as connection:
        counts = [
            connection.execute(f"SELECT COUNT(*) FROM {one}").fetchone()[0] for one in ("passage", "words")
        ]
        connection.execute("INSERT INTO words (words) VALUES ('integrity-check')")
    connection.close()
    assert counts == [45, 45]


async def test_all_words_come_before_some_and_no_document_fills_the_list(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    long = "\n\n".join(f"red {'word ' * 220}" for _ in range(10))
    (folder / "long.txt").write_text(long)
    (folder / "both.txt").write_text(f"{'filler ' * 150} blue and red")
    (folder / "blue.txt").write_text("blue blue blue")
    await index(tmp_path, folder)
    found = await paths(tmp_path, "red blue")
    assert found[0] == "a/both.txt" and found.count("a/long.txt") == 2 and "a/blue.txt" in found
    assert len(await find(tmp_path, "red blue", limit=2)) == 2


async def test_scripts_without_spaces(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    text = "月球轨道的近月点是最接近月球的点。K2.6模型"
    (folder / "moon.txt").write_text(text)
    (folder / "tea.txt").write_text("茶是一种饮料")
    await index(tmp_path, folder)
    assert [(hit.url, hit.snippet) for hit in await find(tmp_path, "近月点")] == [("a/moon.txt", text)]
    assert await paths(tmp_path, "近月点在哪里") == ["a/moon.txt"]
    assert await paths(tmp_path, "饮料") == ["a/tea.txt"]


WRONG = [
    '"',
    "'",
    "a AND",
    "NEAR(a b",
    "title:moon",
    "a*",
    "-moon",
    "(",
    "^moon",
    "a OR OR b",
    "{title}:a",
    "a\0b",
]


@pytest.mark.parametrize("query", [*WRONG, 'moon" OR title:"x', "'; DROP TABLE words; --", "", " ", "%_"])
async def test_nothing_in_a_query_is_syntax(tmp_path: Path, notes: Path, query: str) -> None:
    await index(tmp_path, notes)
    await find(tmp_path, query)
    assert "notes/moon.md" in await paths(tmp_path, f"{query} perilune")


@given(st.text(max_size=200))
def test_any_query_is_words(query: str) -> None:
    with sqlite3.connect(":memory:") as connection:
        connection.execute(
            "CREATE VIRTUAL TABLE words USING fts5 (title, body, tokenize = 'porter unicode61')"
        )
        terms = terms_of(query)
        assert len(terms) <= index_tables.MOST_WORDS
        for term in terms:
            connection.execute("SELECT 1 FROM words WHERE words MATCH ?", (term,)).fetchall()
    connection.close()


@given(st.text(alphabet=st.characters(exclude_characters="\u2060")))
def test_spacing_is_undone(text: str) -> None:
    assert unspaced(spaced(text)) == text


@given(st.text(alphabet="ab .\n", max_size=6 * PASSAGE))
def test_passages_lose_nothing(text: str) -> None:
    pieces = list(passages(text))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece and len(piece) <= PASSAGE for piece in pieces)


async def test_a_search_that_takes_too_long_is_given_up(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        (notes / f"{number}.txt").write_text(f"orbit {number}")
    await index(tmp_path, notes)
    monkeypatch.setattr(local, "STEPS", 10)
    provider = LocalProvider(tmp_path / HOME / index_tables.FILE_NAME, timeout_s=0)
    with pytest.raises(SearchFailed, match="longer than 0 s"):
        await provider.search("orbit", 8)


async def test_an_index_that_is_none(tmp_path: Path, notes: Path) -> None:
    with pytest.raises(SearchFailed, match="no search index yet"):
        await find(tmp_path, "a")
    (tmp_path / HOME).mkdir()
    (tmp_path / HOME / index_tables.FILE_NAME).write_text(
        "not a database, and longer than a page header" * 99
    )
    with pytest.raises(SearchFailed, match="cannot be read"):
        await find(tmp_path, "a")
    with pytest.raises(StoreError, match="delete it and index again"):
        await index(tmp_path, notes)
