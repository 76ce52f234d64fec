"""The durable store: acknowledged means on disk, a failed write touches nobody else, one owner per HOME."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perilune.errors import ConfigError, HomeLocked, JournalCorrupt, StorageFull, StoreError
from perilune.store import HomeLock, Reader, Store, home_holder, replace_file

SOURCE = str(Path(__file__).parents[1] / "src")
SCHEMA = ["CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL)"]


def insert(number: int, text: str = "x") -> Callable[[sqlite3.Connection], int]:
    def work(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO note VALUES (?, ?)", (number, text))
        return number

    return work


@pytest.fixture(
    params=[0.0, 0.01],
    ids=["synced", "synced later"],
)
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    with Store(tmp_path / "deep" / "notes.db", SCHEMA, sync_every_s=request.param) as opened:
        yield opened


def numbers(reader: Store | Reader) -> list[int]:
    return [row[0] for row in reader.read("SELECT id FROM note ORDER BY id")]


# ---- writing and reading


async def test_a_write_returns_its_result_and_is_there(store: Store) -> None:
    assert await store.write(insert(7)) == 7
    assert numbers(store) == [7]
    assert store.write_now(insert(8)) == 8
    assert numbers(store) == [7, 8]


async def test_writes_at_once_share_commits(store: Store) -> None:
    commits = 0

    def count(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    store.write_now(lambda connection: connection.set_trace_callback(count))
    results = await asyncio.gather(*(store.write(insert(number)) for number in range(500)))
    assert results == list(range(500))
    assert numbers(store) == results
    assert commits < 50


async def test_a_failed_write_undoes_itself_alone(store: Store) -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO note VALUES (50, 'half')")
        raise ValueError("no")

    answers = await asyncio.gather(
        store.write(insert(1)),
        store.write(half),
        store.write(insert(1)),
        store.write(insert(2)),
        return_exceptions=True,
    )
    assert answers[0] == 1 and answers[3] == 2
    assert isinstance(answers[1], ValueError)
    assert isinstance(answers[2], sqlite3.IntegrityError)
    assert numbers(store) == [1, 2]


async def test_a_work_that_ends_the_transaction_fails_its_group_and_the_store_goes_on(store: Store) -> None:
    def rude(connection: sqlite3.Connection) -> None:
        connection.execute("COMMIT")
        raise ValueError("no")

    with pytest.raises(StoreError, match="shared transaction"):
        await store.write(rude)
    assert await store.write(insert(3)) == 3


async def test_cancelling_the_wait_does_not_undo_the_write(store: Store) -> None:
    waiting = asyncio.create_task(store.write(insert(4)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await store.write(insert(5))
    assert numbers(store) == [4, 5]


async def test_a_dead_writer_refuses_everybody(store: Store) -> None:
    def die(connection: sqlite3.Connection) -> None:
        raise SystemExit(1)

    answers = await asyncio.gather(store.write(die), store.write(insert(1)), return_exceptions=True)
    assert all(isinstance(answer, StoreError) for answer in answers)
    with pytest.raises(StoreError, match="died"):
        store.write_now(insert(2))
    assert numbers(store) == []


@pytest.mark.parametrize("sync_every_s", [0.0, 600.0])
async def test_closing_keeps_what_was_submitted_and_refuses_the_rest(
    tmp_path: Path, sync_every_s: float
) -> None:
    store = Store(tmp_path / "notes.db", SCHEMA, sync_every_s=sync_every_s)
    submitted = [asyncio.create_task(store.write(insert(number))) for number in range(20)]
    await asyncio.sleep(0)
    store.close()
    store.close()
    assert await asyncio.gather(*submitted) == list(range(20))
    with pytest.raises(StoreError, match="closed"):
        store.write_now(insert(99))
    with pytest.raises(StoreError, match="closed"):
        store.read("SELECT 1")
    with Store(tmp_path / "notes.db", SCHEMA) as again:
        assert numbers(again) == list(range(20))


def test_a_loop_that_closed_meanwhile_harms_nobody(store: Store) -> None:
    held, go = threading.Event(), threading.Event()

    def hold(connection: sqlite3.Connection) -> None:
        held.set()
        go.wait(10)

    async def leave() -> None:
        leaving = asyncio.create_task(store.write(hold))
        assert await asyncio.to_thread(held.wait, 10)
        leaving.cancel()

    asyncio.run(leave())  # its loop is closed before its write is answered
    waiting = threading.Thread(target=store.write_now, args=(insert(1),))
    waiting.start()
    go.set()
    waiting.join(10)
    assert not waiting.is_alive()
    assert store.write_now(insert(2)) == 2
    assert numbers(store) == [1, 2]


async def test_a_writer_of_another_process_makes_writes_wait_and_not_the_loop(store: Store) -> None:
    for number in range(10):
        await store.write(insert(number))
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = [asyncio.create_task(store.write(insert(number))) for number in (10, 11)]
    began = time.monotonic()
    for _ in range(5):
        await asyncio.sleep(0.02)
    assert time.monotonic() - began < 5  # the writer's patience is ten seconds
    assert not any(task.done() for task in waiting)
    other.execute("ROLLBACK")
    other.close()
    assert await asyncio.gather(*waiting) == [10, 11]


async def test_a_writer_of_another_process_that_does_not_end_is_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perilune.store.writer.BUSY_S", 0.05)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another process has been writing"):
        await store.write(insert(1))
    other.close()
    assert await store.write(insert(1)) == 1


def test_a_reader_follows_another_owner_and_cannot_write(store: Store) -> None:
    reader = Reader(store.path)
    assert numbers(reader) == []
    store.write_now(insert(1))
    assert numbers(reader) == [1]
    with pytest.raises(StoreError):
        reader.read("DELETE FROM note")
    reader.close()


def test_a_reader_sees_that_a_store_is_still_being_made(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    sqlite3.connect(path).close()
    path.touch()
    reader = Reader(path)
    assert not reader.ready
    with Store(path, SCHEMA):
        assert reader.ready
    reader.close()


def test_a_reader_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot open .*none\.db"):
        Reader(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()


# ---- files that age or break


def test_an_old_file_gets_the_statements_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    with Store(path, SCHEMA) as old:
        old.write_now(insert(1))
    newer = [*SCHEMA, "CREATE TABLE more (id INTEGER)"]
    with Store(path, newer) as new:
        assert new.read("SELECT * FROM more") == []
        assert numbers(new) == [1]
    with pytest.raises(StoreError, match="newer version"):
        Store(path, SCHEMA)


def test_garbage_is_named_with_its_mend(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_bytes(b"this is not a database, " * 400)
    with pytest.raises(JournalCorrupt, match=r"notes\.db is damaged.*backup"):
        Store(path, SCHEMA)


def test_damage_in_the_middle_is_found_on_opening(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    with Store(path, SCHEMA) as store:
        for number in range(200):
            store.write_now(insert(number, "y" * 500))
    raw = bytearray(path.read_bytes())
    raw[3 * 4096 : 4 * 4096] = b"\xff" * 4096
    path.write_bytes(raw)
    with pytest.raises(JournalCorrupt):
        Store(path, SCHEMA)


def test_a_full_disk_acknowledges_nothing_and_leaves_the_rest(store: Store) -> None:
    store.write_now(insert(1))
    pages = store.write_now(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    store.write_now(lambda connection: connection.execute(f"PRAGMA max_page_count={pages + 1}").fetchone())
    with pytest.raises(StorageFull, match="no space left"):
        store.write_now(insert(2, "z" * 100_000))
    assert numbers(store) == [1]
    store.write_now(lambda connection: connection.execute("PRAGMA max_page_count=100000").fetchone())
    assert store.write_now(insert(3)) == 3


async def test_a_full_disk_fails_the_whole_group(store: Store) -> None:
    pages = store.write_now(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    store.write_now(lambda connection: connection.execute(f"PRAGMA max_page_count={pages + 1}").fetchone())
    large = (store.write(insert(number, "z" * 3_000)) for number in range(10))
    answers = await asyncio.gather(*large, return_exceptions=True)
    kept = [answer for answer in answers if not isinstance(answer, StorageFull)]
    assert numbers(store) == kept
    assert len(kept) < 10


def start_python(code: str, path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )


FILL = """
import resource, signal, sys
from perilune.errors import StoreError
from perilune.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store(sys.argv[1], ["CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL)"])
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
done = 0
try:
    while done < 1000:
        store.write_now(lambda c: c.execute("INSERT INTO note VALUES (?, ?)", (done, "z" * 5000)))
        done += 1
except StoreError as error:
    print(done, type(error).__name__)
"""


def test_a_file_that_may_not_grow_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    with start_python(FILL, path) as child:
        done = child.communicate()[0].split()[0]
    assert 0 < int(done) < 1000
    with Store(path, SCHEMA) as again:
        assert numbers(again)[: int(done)] == list(range(int(done)))


FULL_DISK = """
import asyncio, sys
from pathlib import Path
from perilune.errors import StorageFull
from perilune.store import Store
folder = Path(sys.argv[1])
ballast = folder / "ballast"
ballast.write_bytes(bytes(200_000))
store = Store(folder / "notes.db", ["CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL)"],
              sync_every_s=SYNC_EVERY)
def insert(n):
    return lambda c: c.execute("INSERT INTO note VALUES (?, ?)", (n, "z" * 5000)) and n
async def main():
    kept, refused = [], 0
    for first in range(0, 400, 4):
        for answer in await asyncio.gather(*map(store.write, map(insert, range(first, first + 4))),
                                           return_exceptions=True):
            if isinstance(answer, StorageFull):
                refused += 1
            else:
                kept.append(answer)
    assert refused, "the disk never was full"
    ballast.unlink()
    kept.append(await store.write(insert(10_000)))
    store.close()
    with Store(folder / "notes.db", ["-"]) as again:
        assert [row[0] for row in again.read("SELECT id FROM note ORDER BY id")] == kept
    print(len(kept), refused)
asyncio.run(main())
"""


@pytest.mark.parametrize("sync_every", ["0.0", "0.05"])
def test_a_disk_that_is_full_refuses_and_goes_on_when_there_is_room(tmp_path: Path, sync_every: str) -> None:
    """On a real one, of a megabyte, in a namespace of its own."""
    script = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    mounted = ["unshare", "-Urm", "sh", "-c", script, str(tmp_path)]
    if subprocess.run([*mounted, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    code = FULL_DISK.replace("SYNC_EVERY", sync_every)
    done = subprocess.run(
        [*mounted, sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kept, refused = map(int, done.stdout.split())
    assert kept > 10 and refused > 10


# ---- kill -9

WRITER = """
import asyncio, sys
from perilune.store import Store
schema = ["CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL)"]
store = Store(sys.argv[1], schema, sync_every_s=SYNC_EVERY)
def insert(n):
    return lambda c: c.execute("INSERT INTO note VALUES (?, ?)", (n, "z" * 700)) and None
async def one(lane):
    for n in range(lane, 10**9, 8):
        await store.write(insert(n))
        print(n, flush=True)
async def main():
    await asyncio.gather(*(one(lane) for lane in range(8)))
asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 9, 60, 333])
@pytest.mark.parametrize("sync_every", ["0.0", "0.05", "60.0"])
def test_no_acknowledged_write_is_lost_to_kill_9(tmp_path: Path, lines: int, sync_every: str) -> None:
    path = tmp_path / "notes.db"
    with start_python(WRITER.replace("SYNC_EVERY", sync_every), path) as child:
        assert child.stdout is not None
        seen = [int(child.stdout.readline()) for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        seen += [int(line) for line in child.stdout.read().split(b"\n")[:-1]]
    with Store(path, SCHEMA) as again:
        assert set(seen) <= set(numbers(again))
        assert again.write_now(insert(-1)) == -1


# ---- a store that syncs later


class Syncs:
    """Counts the syncs of a store's log, or lets them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.fail = False
        self._sync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self)

    def __call__(self, fd: int) -> None:
        self.count += 1
        if self.fail:
            raise OSError(errno.EIO, "the disk is broken")
        self._sync(fd)

    def until(self, count: int) -> None:
        end = time.monotonic() + 10
        while self.count < count:
            assert time.monotonic() < end
            time.sleep(0.001)


async def test_only_a_blocking_write_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = Syncs(monkeypatch)
    with Store(tmp_path / "notes.db", SCHEMA, sync_every_s=600.0) as store:
        await store.write(insert(1))
        syncs.until(1)  # then not for ten minutes
        await store.write(insert(2))
        await store.write(insert(3))
        assert syncs.count == 1
        store.write_now(insert(4))
        assert syncs.count == 2
        assert numbers(store) == [1, 2, 3, 4]


async def test_the_disk_hears_of_writes_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch)
    with Store(tmp_path / "notes.db", SCHEMA, sync_every_s=0.001) as store:
        for number in range(3):
            await store.write(insert(number))
            syncs.until(number + 1)


def test_a_refused_sync_holds_for_good_whoever_met_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of a lost page once; the next sync that succeeds does not bring it back."""
    syncs = Syncs(monkeypatch)
    with Store(tmp_path / "notes.db", SCHEMA, sync_every_s=600.0) as store:
        store.write_now(insert(1))
        syncs.until(2)
        syncs.fail = True
        with pytest.raises(StoreError, match=r"cannot bring .*notes\.db to the disk: the disk is broken"):
            store.write_now(insert(2))
        syncs.fail = False
        with pytest.raises(StoreError, match="the disk is broken"):
            store.write_now(insert(3))
        assert numbers(store) == [1, 2]


async def test_the_last_commits_are_synced_by_closing_or_closing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = Syncs(monkeypatch)
    for fails in (False, True):
        store = Store(tmp_path / f"{fails}.db", SCHEMA, sync_every_s=600.0)
        await store.write(insert(1))
        syncs.until(1)  # then not for ten minutes
        late = asyncio.create_task(store.write(insert(2)))
        await asyncio.sleep(0)
        syncs.fail = fails
        if fails:
            with pytest.raises(StoreError, match="to the disk"):
                store.close()
        else:
            store.close()
        assert syncs.count == 2
        assert await late == 2
        store.close()
        syncs.count = 0


async def test_nothing_is_acknowledged_once_the_keeper_of_the_log_has_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(os, "fdatasync", broken)
    with Store(tmp_path / "notes.db", SCHEMA, sync_every_s=0.001) as store:
        async with asyncio.timeout(10):
            with pytest.raises(StoreError, match="no such luck"):
                for number in range(10**9):
                    await store.write(insert(number))
        monkeypatch.undo()


def test_a_sync_needs_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    with Store(tmp_path / "notes.db", SCHEMA, sync_every_s=0.001) as store:
        monkeypatch.setattr(os, "open", none_left)
        for number in range(20):
            store.write_now(insert(number))
        monkeypatch.undo()


async def test_nothing_is_acknowledged_once_the_disk_has_refused_a_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = Syncs(monkeypatch)
    with Store(tmp_path / "notes.db", SCHEMA, sync_every_s=0.001) as store:
        syncs.fail = True
        await store.write(insert(1))
        syncs.until(1)
        async with asyncio.timeout(10):
            with pytest.raises(StoreError, match="the disk is broken"):
                for number in range(2, 10**9):
                    await store.write(insert(number))
        with pytest.raises(StoreError):
            store.write_now(insert(0))


async def test_the_log_begins_anew_under_writes_that_never_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perilune.store.log.FOLD_EVERY_S", 0.01)
    monkeypatch.setattr("perilune.store.log.LONG_LOG_PAGES", 100)
    path, number = tmp_path / "notes.db", 0
    with Store(path, SCHEMA, sync_every_s=0.001) as store:
        await store.write(insert(number))
        first = salts(path)
        async with asyncio.timeout(30):
            while salts(path) == first:
                number += 1
                await store.write(insert(number, "x" * 3000))
        assert number > 20
        assert numbers(store) == list(range(number + 1))


def salts(path: Path) -> bytes:
    """Of the log's head: others each time that it begins anew."""
    with path.with_name(f"{path.name}-wal").open("rb") as log:
        return log.read(32)[16:24]


# ---- replacing a whole file


def test_a_replaced_file_is_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    replace_file(path, b"old")
    replace_file(path, b"new", mode=0o640)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.json"]


def test_a_file_that_cannot_be_replaced_is_left(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="cannot write"):
        replace_file(tmp_path / "folder", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


# ---- one HOME, one owner


def test_a_second_owner_is_told_who_the_first_is(tmp_path: Path) -> None:
    with HomeLock(tmp_path / "home", "serve") as lock:
        lock.announce("http://127.0.0.1:1")
        holder = home_holder(tmp_path / "home")
        assert holder is not None
        assert (holder.pid, holder.purpose, holder.address) == (os.getpid(), "serve", "http://127.0.0.1:1")
        with pytest.raises(HomeLocked, match=rf"process {os.getpid()} \(perilune serve\).*--home"):
            HomeLock(tmp_path / "home", "swarm run")
    assert home_holder(tmp_path / "home") is None
    HomeLock(tmp_path / "home").release()


def test_nobody_holds_a_home_that_is_not_there(tmp_path: Path) -> None:
    assert home_holder(tmp_path / "none") is None


def test_a_killed_owner_leaves_the_home_free(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from perilune.store import HomeLock\n"
    code += "lock = HomeLock(Path(sys.argv[1]), 'serve'); print('held', flush=True); time.sleep(60)"
    with start_python(code, tmp_path) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(HomeLocked, match=f"process {child.pid}"):
            HomeLock(tmp_path)
        child.kill()
    HomeLock(tmp_path).release()


def test_children_do_not_inherit_the_lock(tmp_path: Path) -> None:
    lock = HomeLock(tmp_path)
    child = subprocess.Popen(["sleep", "30"], close_fds=False)
    lock.release()
    try:
        HomeLock(tmp_path).release()
    finally:
        child.kill()
        child.wait()


def test_a_home_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="home: cannot write to"):
        HomeLock(tmp_path / "file" / "home")


def test_a_closed_store_is_whole_in_its_one_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db", ["CREATE TABLE t (x INTEGER)"])
    store.write_now(lambda connection: connection.execute("INSERT INTO t VALUES (7)"))
    onlooker = Reader(tmp_path / "a.db")
    assert onlooker.read("SELECT x FROM t") == [(7,)]
    store.close()  # the onlooker is the last to close, and may not write
    onlooker.close()
    (tmp_path / "b.db").write_bytes((tmp_path / "a.db").read_bytes())
    copy = Reader(tmp_path / "b.db")
    assert copy.read("SELECT x FROM t") == [(7,)]
    copy.close()


def test_a_home_that_is_a_file_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another with --home"):
        home_holder(tmp_path / "file")
