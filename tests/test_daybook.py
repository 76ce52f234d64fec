"""The day book: what is entered is safe at once, and posted once, in order, whatever happens between."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from perilune.errors import StorageFull, StoreError
from perilune.store import Reader, Store, daybook, writer

SOURCE = str(Path(__file__).parents[1] / "src")
SCHEMA = ["CREATE TABLE note (number INTEGER PRIMARY KEY, text TEXT NOT NULL)", *daybook.TABLE]


class Notes:
    """Entries are numbers, of which each becomes a row."""

    text = "x"

    def encode(self, entry: int) -> bytes:
        return json.dumps([entry]).encode()

    def decode(self, line: bytes) -> int:
        (number,) = json.loads(line)
        return int(number)

    def post(self, connection: sqlite3.Connection, entries: Sequence[int]) -> bool:
        connection.executemany("INSERT INTO note VALUES (?, ?)", [(one, self.text) for one in entries])
        return False


def opened(path: Path, posting: Notes | None = None, sync_every_s: float = 600.0) -> Store:
    return Store(path, SCHEMA, sync_every_s=sync_every_s, posting=posting or Notes())


NUMBERS = "SELECT number FROM note ORDER BY rowid"


def numbers(source: Store | Reader) -> list[int]:
    return [row[0] for row in source.read(NUMBERS)]


def posted(store: Store) -> list[int]:
    return [row[0] for row in store.read_posted(NUMBERS)]


def files(path: Path) -> list[str]:
    return sorted(one.name for one in path.parent.glob("*-day-*"))


def until(reader: Reader, expected: list[int]) -> None:
    end = time.monotonic() + 10
    while numbers(reader) != expected:
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notes.db"


def never_posted(monkeypatch: pytest.MonkeyPatch) -> None:
    """But by reading and closing."""
    monkeypatch.setattr(writer, "POST_EVERY_S", 600.0)
    monkeypatch.setattr(writer, "POST_AT", 10**9)


@pytest.mark.parametrize("sync_every_s", [0.0, 600.0])
def test_what_is_entered_is_read_at_once_and_by_others_soon(path: Path, sync_every_s: float) -> None:
    with opened(path, sync_every_s=sync_every_s) as store:
        reader = Reader(path)
        for number in range(3):
            store.enter(number)
            assert numbers(store) == list(range(number + 1))
        store.enter(3)
        until(reader, [0, 1, 2, 3])
        reader.close()
        assert files(path) == ["notes.db-day-1"]
    assert files(path) == []


def test_a_write_comes_after_what_was_entered_before_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never_posted(monkeypatch)
    with opened(path) as store:
        store.enter(1)
        seen = store.write_now(
            lambda connection: connection.execute("SELECT COUNT(*) FROM note").fetchone()[0]
        )
        assert seen == 1
        before = store.changes
        store.enter(2)
        assert posted(store) == [1] and numbers(store) == [1, 2]
        assert store.changes == before
        store.write_now(lambda connection: None)
        assert store.changes == before + 1


def test_a_write_that_fails_does_not_undo_what_was_entered(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_posted(monkeypatch)

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO note VALUES (99, 'x')")
        raise ValueError("no")

    with opened(path) as store:
        store.enter(1)
        with pytest.raises(ValueError, match="no"):
            store.write_now(fail)
        assert posted(store) == [1]


def test_who_enters_much_posts_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "POST_EVERY_S", 600.0)
    with opened(path) as store:
        threads: list[int] = []
        post = Notes.post
        monkeypatch.setattr(Notes, "post", lambda *args: threads.append(threading.get_ident()) or post(*args))
        for number in range(1000):
            store.enter(number)
        assert set(threads) == {threading.get_ident()} and len(threads) > 1


async def test_secure_waits_for_the_disk_where_writes_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never_posted(monkeypatch)
    for sync_every_s, there in ((600.0, []), (0.0, [1])):
        with opened(path.with_stem(f"{sync_every_s}"), sync_every_s=sync_every_s) as store:
            store.enter(1)
            await store.secure()
            assert posted(store) == there
            assert store.changes == 0


# ---- the end of the process

ENTERING = """
import sys
sys.path[:0] = [sys.argv[2]]
from pathlib import Path
from perilune.store import daybook, writer
from tests.test_daybook import opened
daybook.FILE_BYTES, writer.POST_AT = 2000, 7
store = opened(Path(sys.argv[1]), sync_every_s=float(sys.argv[3]))
for number in range(store.read("SELECT COUNT(*) FROM note")[0][0], 10**9):
    store.enter(number)
    print(number, flush=True)
"""


@pytest.mark.parametrize("sync_every_s", ["600", "0.001"])
def test_what_was_entered_is_there_once_after_kill_9(path: Path, sync_every_s: str) -> None:
    last = -1
    for lines in (1, 3, 60, 333, 1000):
        args = [sys.executable, "-c", ENTERING, str(path), str(Path(__file__).parents[1]), sync_every_s]
        with subprocess.Popen(
            args, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": SOURCE}
        ) as child:
            assert child.stdout is not None
            for _ in range(lines):
                last = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            last = max([last, *map(int, child.stdout.read().split(b"\n")[:-1])])
        with opened(path) as store:
            found = numbers(store)
            assert found == list(range(len(found))) and len(found) > last
    assert files(path) == []


def left_behind(path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Files as a killed process leaves them, of which nothing is posted."""
    never_posted(monkeypatch)
    store = opened(path)
    for number in range(count):
        store.enter(number)
    left = {name: (path.parent / name).read_bytes() for name in files(path)}
    monkeypatch.setattr(Notes, "post", lambda *args: None)
    store.close()
    monkeypatch.undo()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE daybook SET file = 0, byte = 0")
    connection.close()
    for name, content in left.items():
        (path.parent / name).write_bytes(content)


def test_a_cut_at_any_byte_loses_only_what_is_cut(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind(path, monkeypatch, 5)
    (name,) = files(path)
    lines = (path.parent / name).read_bytes().rstrip(b"\0")
    database = path.read_bytes()
    for cut in range(len(lines) + 1):
        for end in (b"", bytes(100)):
            path.write_bytes(database)
            (path.parent / name).write_bytes(lines[:cut] + end)
            with opened(path) as store:
                assert numbers(store) == list(range(lines[:cut].count(b"\n") - 1))
            for aside in path.parent.glob("*.unposted"):
                assert aside.read_bytes() == lines[:cut] + end
                aside.unlink()
    assert files(path) == []


def test_what_follows_damage_is_kept_aside(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(daybook, "FILE_BYTES", 110)
    left_behind(path, monkeypatch, 10)
    names = files(path)
    assert len(names) > 2
    before = (path.parent / names[0]).read_bytes().count(b"\n") - 1
    content = bytearray((path.parent / names[1]).read_bytes())
    content[content.index(b"[%d]" % before) + 1] ^= 1
    (path.parent / names[1]).write_bytes(content)
    with opened(path) as store:
        assert numbers(store) == list(range(before))
        store.enter(100)
        assert numbers(store) == [*range(before), 100]
    assert files(path) == [f"{name}.unposted" for name in names[1:]]
    assert "notes.db-day-2 is no whole part of the day book" in caplog.text
    with opened(path) as store:
        assert numbers(store) == [*range(before), 100]


def test_a_file_without_the_one_before_it_is_kept_aside(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a power cut may leave them."""
    monkeypatch.setattr(daybook, "FILE_BYTES", 110)
    left_behind(path, monkeypatch, 10)
    names, first = files(path), path.parent / "notes.db-day-1"
    lines = first.read_bytes().splitlines(keepends=True)
    first.write_bytes(b"".join(lines[:-2]).ljust(110, b"\0"))  # the last entry is gone
    with opened(path) as store:
        assert numbers(store) == list(range(len(lines) - 3))
    assert files(path) == [f"{name}.unposted" for name in names[1:]]


def test_files_of_another_database_are_kept_aside_under_names_of_their_own(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for _ in range(2):
        left_behind(path, monkeypatch, 3)
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        with opened(path) as store:
            assert numbers(store) == []
            store.enter(7)
        path.unlink()
    assert files(path) == ["notes.db-day-1.unposted", "notes.db-day-1.unposted-2"]
    assert (tmp_path / "notes.db-day-1.unposted-2").read_bytes().count(b"\n") == 4


def test_nothing_is_kept_aside_before_all_else_is_posted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the start fails between the two, the next one finds all of it again."""
    left_behind(path, monkeypatch, 3)
    with (path.parent / files(path)[0]).open("r+b") as file:
        file.seek(file.read().index(b"[2]"))
        file.write(b"[9]")
    with monkeypatch.context() as full:
        full.setattr(Notes, "post", lambda *args: 1 // 0)
        with pytest.raises(StoreError, match=r"day-\* hold does not fit .*ZeroDivisionError") as caught:
            opened(path)
        assert "move them away" in str(caught.value.mend)
    assert files(path) == ["notes.db-day-1"]
    with opened(path) as store:
        assert numbers(store) == [0, 1]
    assert files(path) == ["notes.db-day-1.unposted"]


def test_a_file_that_is_full_is_followed_by_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never_posted(monkeypatch)
    monkeypatch.setattr(daybook, "FILE_BYTES", 150)
    with opened(path) as store:
        for number in range(30):
            store.enter(number)
        assert len(files(path)) == 5
        assert numbers(store) == list(range(30))
        assert len(files(path)) == 1


def test_rows_that_are_posted_are_not_posted_again(path: Path) -> None:
    """Where the process died after posting and before it deleted the file."""
    store = opened(path)
    store.enter(1)
    content = {name: (path.parent / name).read_bytes() for name in files(path)}
    store.close()
    for name, lines in content.items():
        (path.parent / name).write_bytes(lines)
    with opened(path) as store:
        assert numbers(store) == [1]
        store.enter(2)
    assert files(path) == []


# ---- tables that take nothing, and disks


def test_while_the_tables_are_full_nothing_begins_and_what_began_may_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Notes, "text", "z" * 3000)
    with opened(path) as store:
        store.write_now(lambda connection: connection.execute("PRAGMA max_page_count=8").fetchone())
        entered = 0
        with pytest.raises(StorageFull, match="no space left"):
            for _ in range(1000):
                store.enter(entered, keep=100)
                entered += 1
                numbers(store)
        assert entered < 20
        store.enter(entered)
        assert numbers(store) == list(range(len(numbers(store))))  # as far as it came
        with pytest.raises(StorageFull):
            store.write_now(lambda connection: None)
        store._connection.execute("PRAGMA max_page_count=1000").fetchone()
        assert numbers(store) == list(range(entered + 1))
        store.enter(1000, keep=100)


def test_what_the_tables_did_not_take_is_posted_by_the_next_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_posted(monkeypatch)
    store = opened(path)
    store.enter(1)
    store.enter(1)
    store.enter(2)
    assert numbers(store) == []
    store.close()
    assert files(path) == ["notes.db-day-1"]
    with pytest.raises(StoreError, match="UNIQUE"):
        opened(path)
    with sqlite3.connect(path) as connection:  # whoever mends it
        connection.executescript("DROP TABLE note; CREATE TABLE note (number INTEGER, text TEXT)")
    connection.close()
    with opened(path) as store:
        assert numbers(store) == [1, 1, 2]
    assert files(path) == []


def test_posting_that_breaks_ends_the_store_and_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_posted(monkeypatch)
    with opened(path) as store:
        store.enter(1)
        with monkeypatch.context() as broken:
            broken.setattr(Notes, "post", lambda *args: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                numbers(store)
        with pytest.raises(StoreError, match="ZeroDivisionError"):
            store.enter(2)
        with pytest.raises(StoreError, match="ZeroDivisionError"):
            store.write_now(lambda connection: None)
    with opened(path) as store:
        assert numbers(store) == [1]


def test_there_is_room_for_what_must_follow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daybook, "FILE_BYTES", 260)
    monkeypatch.setattr(daybook, "MOST_KEPT", 100)

    def full(fd: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with opened(path) as store:
        store.enter(0, keep=100)
        monkeypatch.setattr(os, "posix_fallocate", full)
        begun = 1
        with pytest.raises(StorageFull, match=r"notes\.db-day-2"):
            for _ in range(100):
                store.enter(begun, keep=100)
                begun += 1
        for number in range(begun, begun + 6):
            store.enter(number)
        with pytest.raises(StorageFull):
            for number in range(begun + 6, 100):
                store.enter(number)
        monkeypatch.undo()
        store.enter(1000, keep=100)
        found = numbers(store)
        assert found == [*range(len(found) - 1), 1000] and len(found) >= begun + 7
    assert files(path) == []


def test_a_line_that_was_written_in_part_is_not_entered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as store:
        store.enter(1)
        write = os.pwrite
        with monkeypatch.context() as short:
            short.setattr(os, "pwrite", lambda fd, line, at: write(fd, line[:5], at))
            with pytest.raises(StorageFull):
                store.enter(2)
        store.enter(3)
        assert numbers(store) == [1, 3]


async def test_another_process_that_writes_keeps_nobody_waiting(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "READ_PATIENCE_S", 0.02)
    monkeypatch.setattr(writer, "MOST_WAITING", 200)
    with opened(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        for number in range(200):
            store.enter(number, keep=10)
        assert numbers(store) == []
        assert time.monotonic() - began < 5  # the writer's patience is ten seconds
        store.enter(200, keep=10)
        with pytest.raises(StoreError, match="another process that writes"):
            store.enter(201, keep=10)
        store.enter(201)
        other.execute("ROLLBACK")
        other.close()
        await store.write(lambda connection: None)
        assert posted(store) == list(range(202))
        store.enter(202, keep=10)


def test_several_threads_enter_and_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daybook, "FILE_BYTES", 1000)

    def many(first: int) -> None:
        for number in range(first, first + 300):
            store.enter(number)
            if number % 50 == 0:
                numbers(store)
                asyncio.run(store.write(lambda connection: None))

    with opened(path, sync_every_s=0.001) as store:
        threads = [threading.Thread(target=many, args=(300 * place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(numbers(store)) == list(range(1200))
    assert files(path) == []
