"""Keys: made once, stored as digests, refused without a reason given away."""

import gc
import json
import re
import sqlite3
import stat
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from perilune.accounts.accounts import Accounts
from perilune.accounts.keys import new_secret, well_formed
from perilune.accounts.request_ids import new_request_id
from perilune.errors import ConfigError, Forbidden, InputError, InvalidKey, NotFound, StorageFull
from perilune.settings import Settings


def opened(home: Path, now: float = 1000.0) -> Accounts:
    return Accounts.open(home, Settings(home=home), clock=lambda: now)


def keys(home: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((home / "keys.json").read_text())
    return found


def test_the_first_start_writes_two_working_keys(tmp_path: Path) -> None:
    with opened(tmp_path) as accounts:
        found = keys(tmp_path)
        assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "key-secret").stat().st_mode) == 0o600
        assert set(found) == {"admin_key", "project_key"}
        assert all(key.startswith("plk_") for key in found.values())
        principal = accounts.authenticate(found["project_key"], "chat")
        assert principal == accounts.local_principal()
        assert accounts.authenticate(found["admin_key"], "admin").scopes == {"admin"}
        with pytest.raises(Forbidden, match="admin"):
            accounts.authenticate(found["project_key"], "admin")
        with pytest.raises(Forbidden):
            accounts.authenticate(found["admin_key"], "chat")


def test_keys_survive_a_restart_and_the_file_may_be_moved_away(tmp_path: Path) -> None:
    opened(tmp_path).close()
    found = keys(tmp_path)
    (tmp_path / "keys.json").unlink()
    with opened(tmp_path) as accounts:
        accounts.authenticate(found["project_key"], "chat")
        assert not (tmp_path / "keys.json").exists()


def test_a_crash_between_the_file_and_the_rows_loses_no_key(tmp_path: Path) -> None:
    opened(tmp_path).close()
    found = keys(tmp_path)
    for name in ("accounts.db", "accounts.db-wal", "accounts.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    with opened(tmp_path) as accounts:
        assert keys(tmp_path) == found
        accounts.authenticate(found["admin_key"], "admin")


def test_no_file_but_keys_json_holds_a_key(tmp_path: Path) -> None:
    with opened(tmp_path) as accounts:
        secret = accounts.create_key("third")
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        assert secret.encode() not in data
        if path.name != "keys.json":
            assert not any(key.encode() in data for key in keys(tmp_path).values())


def test_unknown_disabled_and_expired_keys_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path, now=1000.0) as accounts:
        for junk in ("", "plk_", "Bearer x", "plk_" + "a" * 39, new_secret(), "plk_" + "ä" * 39):
            with pytest.raises(InvalidKey, match="not valid"):
                accounts.authenticate(junk, "chat")
        secret = accounts.create_key("short", expires_ms=1_000_001)
        principal = accounts.authenticate(secret, "chat")
        expired = accounts.create_key("over", expires_ms=1_000_000)
        with pytest.raises(InvalidKey, match="expired"):
            accounts.authenticate(expired, "chat")
        accounts.disable_key(principal.key_id)
        with pytest.raises(InvalidKey, match="not valid"):
            accounts.authenticate(secret, "chat")
        with pytest.raises(NotFound):
            accounts.disable_key(99)
    with opened(tmp_path) as accounts, pytest.raises(InvalidKey):
        accounts.authenticate(secret, "chat")


def test_a_checksum_tells_junk_without_a_look_up() -> None:
    secret = new_secret()
    assert well_formed(secret)
    for at in range(4, len(secret)):
        other = "A" if secret[at] != "A" else "B"
        assert not well_formed(secret[:at] + other + secret[at + 1 :])


def test_unknown_scopes_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as accounts:
        for scopes in ((), ("root",), ("chat", "everything")):
            with pytest.raises(ConfigError, match="scopes"):
                accounts.create_key("x", scopes)


def test_a_lost_secret_stops_the_start_with_the_mend(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "key-secret").unlink()
    with pytest.raises(ConfigError, match="restore it"):
        opened(tmp_path)
    assert not (tmp_path / "key-secret").exists()


@pytest.mark.parametrize(
    "keys",
    [{"admin_key": "x"}, {"admin_key": "", "project_key": ""}, {"admin_key": "admin", "project_key": "x"}],
)
def test_a_damaged_keys_file_of_a_first_start_is_named(tmp_path: Path, keys: dict[str, str]) -> None:
    """No empty, short or guessable key is ever taken."""
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    with pytest.raises(ConfigError, match="move it away"):
        opened(tmp_path)


def test_the_database_is_not_left_open_after_a_failed_start(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "key-secret").write_bytes(b"short")
    with pytest.raises(ConfigError, match="32 bytes"):
        opened(tmp_path)
    connection = sqlite3.connect(tmp_path / "accounts.db")
    connection.execute("BEGIN EXCLUSIVE")
    connection.close()


def test_request_ids_are_unique_and_sort_by_time() -> None:
    ids = [new_request_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {len(one) for one in ids} == {26}
    assert [one[:10] for one in ids] == sorted(one[:10] for one in ids)


def test_a_request_id_tells_its_time_and_uses_all_digits_alike() -> None:
    digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    ids = [new_request_id() for _ in range(1000)]
    made_ms = sum(digits.index(digit) << 5 * place for place, digit in enumerate(reversed(ids[0][:10])))
    assert abs(time.time() * 1000 - made_ms) < 60_000
    used = Counter("".join(one[10:] for one in ids))
    assert set(used) == set(digits)
    assert all(350 < count < 650 for count in used.values())  # of 16,000: 500 each, give or take


def test_a_slow_reading_of_the_keys_never_brings_a_disabled_one_back(tmp_path: Path) -> None:
    with Accounts.open(tmp_path, Settings(home=tmp_path)) as accounts:
        secret = accounts.create_key("ci")
        read, has_read, may_go_on = accounts.store.read, threading.Event(), threading.Event()

        def slow_read(sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
            rows = read(sql, params)
            if not has_read.is_set():
                has_read.set()
                may_go_on.wait(5)
            return rows

        accounts.store.read = slow_read  # type: ignore[method-assign]
        slow = threading.Thread(target=accounts.keyring.load)
        slow.start()
        assert has_read.wait(5)
        ending = threading.Thread(target=accounts.disable_key, args=(3,))
        ending.start()
        ending.join(0.2)  # it waits for the slow one, or is done before it
        may_go_on.set()
        slow.join()
        ending.join()
        with pytest.raises(InvalidKey):
            accounts.authenticate(secret, "chat")


def test_the_command_line_never_acts_for_a_key_of_another_organisation(tmp_path: Path) -> None:
    now = 1_000.0
    with Accounts.open(tmp_path, Settings(home=tmp_path), clock=lambda: now) as accounts:
        accounts.organisations.create("acme", actor="me")
        accounts.create_key("of acme", project_id=2)
        accounts.disable_key(2)
        with pytest.raises(ConfigError, match="perilune keys create"):
            accounts.local_principal()
        accounts.create_key("short", expires_ms=2_000_000)
        assert accounts.local_principal().key_name == "short"
        now = 2_000.0
        with pytest.raises(ConfigError, match="no key that may call models"):
            accounts.local_principal()


@pytest.mark.parametrize("expires_ms", [0, -5, 10**15])
def test_a_day_that_no_calendar_has_is_refused(tmp_path: Path, expires_ms: int) -> None:
    with (
        Accounts.open(tmp_path, Settings(home=tmp_path)) as accounts,
        pytest.raises(InputError, match="year 9999"),
    ):
        accounts.create_key("ci", expires_ms=expires_ms)


def test_a_key_names_its_environment(tmp_path: Path) -> None:
    """`plk_<environment>_<32 random>_<checksum>`: for people and for secret scanners."""
    form = r"plk_{}_[0-9A-Za-z]{{32}}_[0-9A-Za-z]{{6}}"
    with opened(tmp_path) as accounts:
        assert re.fullmatch(form.format("live"), keys(tmp_path)["admin_key"])
        assert re.fullmatch(form.format("live"), accounts.create_key("one"))
    with Accounts.open(tmp_path, Settings(home=tmp_path, key_environment="test9")) as accounts:
        secret = accounts.create_key("two")
        assert re.fullmatch(form.format("test9"), secret)
        assert accounts.authenticate(secret, "chat").key_name == "two"
        accounts.authenticate(keys(tmp_path)["project_key"], "chat")
        hint = accounts.keyring.states()[-1].hint
    assert hint == f"{secret[:14]}…{secret[-4:]}" and len(secret) - len(hint) >= 30
    assert not well_formed(secret.replace("_test9_", "_live_"))  # the checksum covers it
    for name in ("", "Live", "a_b", "9", "a" * 13, "é"):
        with pytest.raises(ConfigError, match="key_environment"):
            Accounts.open(tmp_path, Settings(home=tmp_path, key_environment=name))


def test_keys_of_earlier_versions_still_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = "plk_0123456789ABCDEFGHIJKLMNOPQRSTUV_1ggZdL"  # as the first versions made them
    with opened(tmp_path) as accounts:
        monkeypatch.setattr("perilune.accounts.keyring.new_secret", lambda _: old)
        accounts.create_key("old")
        assert accounts.authenticate(old, "chat").key_name == "old"
        assert accounts.keyring.states()[-1].hint == "plk_0123…gZdL"


def test_keys_are_random(tmp_path: Path) -> None:
    """190 bits each: far beyond the 128 from which a plain digest is enough."""
    made = {new_secret() for _ in range(500)}
    assert len(made) == 500
    for place in range(9, 41):
        assert len({secret[place] for secret in made}) > 45  # of 62


async def test_the_last_use_is_kept_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    clock = [1000.0]

    def kept(accounts: Accounts) -> list[int | None]:
        return [row[0] for row in accounts.store.read("SELECT last_used_ms FROM api_key ORDER BY id")]

    settings = Settings(home=tmp_path)
    with Accounts.open(tmp_path, settings, lambda: clock[0]) as accounts:
        secret = keys(tmp_path)["project_key"]
        for _ in range(100):
            clock[0] += 0.25
            accounts.authenticate(secret, "chat")
        assert kept(accounts) == [None, None]  # a call writes nothing
        assert [one.last_used_ms for one in accounts.keyring.states()] == [None, 1_025_000]
        await accounts.keyring.write_uses()
        assert kept(accounts) == [None, 1_025_000]
        for wrong in (secret + "x", keys(tmp_path)["admin_key"]):
            clock[0] += 1
            with pytest.raises((InvalidKey, Forbidden)):
                accounts.authenticate(wrong, "chat")
        await accounts.keyring.write_uses()
        assert kept(accounts) == [None, 1_025_000]
        clock[0] = 2000.0
        accounts.authenticate(secret, "chat")
    with Accounts.open(tmp_path, settings) as accounts:
        assert kept(accounts) == [None, 2_000_000]


async def test_a_last_use_that_could_not_be_written_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as accounts:
        accounts.authenticate(keys(tmp_path)["project_key"], "chat")

        async def full(work: object) -> None:
            raise StorageFull("no space")

        with monkeypatch.context() as patch:
            patch.setattr(accounts.store, "write", full)
            with pytest.raises(StorageFull):
                await accounts.keyring.write_uses()
        await accounts.keyring.write_uses()
        assert accounts.store.read("SELECT last_used_ms FROM api_key WHERE id = 2") == [(1_000_000,)]


def test_unknown_keys_leave_nothing_behind(tmp_path: Path) -> None:
    """There is no memory of keys that are none, so none that could grow."""
    with opened(tmp_path) as accounts:
        tracemalloc.start()
        held = []
        for times in (100, 2000):
            for _ in range(times):
                with pytest.raises(InvalidKey):
                    accounts.authenticate(new_secret(), "chat")
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert held[1] - held[0] < 20_000
