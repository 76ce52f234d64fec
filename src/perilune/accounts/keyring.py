"""All keys of a HOME, in memory: made, listed, given budgets, disabled, and recognised without the disk."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perilune.accounts import audit
from perilune.accounts.keys import (
    KeyRow,
    Principal,
    check_environment,
    check_scopes,
    digest_of,
    hint_of,
    key_secret,
    new_secret,
    well_formed,
)
from perilune.accounts.organisations import check_name, first_project
from perilune.errors import ConfigError, Forbidden, InputError, InvalidKey, NotFound, StoreError
from perilune.store import Store, Work, replace_file

KEYS_FILE = "keys.json"
FIRST_KEYS = {"admin_key": ("first admin key", "admin"), "project_key": ("first project key", "chat")}
"""Entry of keys.json -> the key's name and scopes."""
LAST_EXPIRY_MS = 253_402_300_799_999
"""The end of the year 9999."""


@dataclass(frozen=True)
class KeyState:
    """One key as operators see it."""

    id: int
    name: str
    hint: str
    project: str
    project_id: int
    organisation_id: int
    scopes: tuple[str, ...]
    created_ms: int
    expires_ms: int | None
    disabled: bool
    budget: int | None
    spent: int
    reserved: int
    last_used_ms: int | None


class Keyring:
    """The only writer of keys in this process, and this process is the only one that writes them."""

    def __init__(self, home: Path, store: Store, clock: Callable[[], float], environment: str) -> None:
        """New keys name the `environment`. Raises ConfigError for one that they cannot, and when the key
        secret is gone."""
        self._environment = check_environment(environment)
        self._home = home
        self._store = store
        self._clock = clock
        self._secret = key_secret(home, has_keys=bool(store.read("SELECT 1 FROM api_key LIMIT 1")))
        self._salt = os.urandom(16)
        self._known: dict[bytes, bytes] = {}
        """Short digests, by `_salt`, of keys of ours that were used -> their digests."""
        self._keys: dict[bytes, KeyRow] = {}
        self._local: list[KeyRow] = []
        self._used: dict[int, int] = {}
        """Key -> when it was last used, as far as that is not written yet."""
        self._loading = threading.Lock()
        """Without it, a slower `load` could put back what was read before a key was disabled."""

    def load(self) -> None:
        """Read all keys: authentication then reads no disk."""
        with self._loading:
            rows = self._store.read(
                """SELECT k.id, k.name, k.project_id, p.organisation_id, k.scopes, k.digest, k.hint,
                    k.expires_ms, k.disabled
                FROM api_key k JOIN project p ON p.id = k.project_id ORDER BY k.id"""
            )
            found = [_key_row(row) for row in rows]
            self._keys = {row.digest: row for row in found}
            local = min((row.principal.project_id for row in found), default=None)
            self._local = [
                row for row in found if row.principal.project_id == local and "chat" in row.principal.scopes
            ]

    def ensure_file(self) -> Path:
        """See `Accounts.ensure_keys_file`."""
        path = self._home / KEYS_FILE
        if self._store.read("SELECT 1 FROM api_key LIMIT 1"):
            return path
        if path.exists():
            found = _read_keys_file(path)
        else:
            found = {entry: new_secret(self._environment) for entry in FIRST_KEYS}
            replace_file(path, (json.dumps(found, indent=2) + "\n").encode())

        def work(connection: sqlite3.Connection) -> None:
            project_id = first_project(connection)
            for entry, (name, scope) in FIRST_KEYS.items():
                self._insert(connection, found[entry], project_id, name, {scope}, None, None)

        self._store.write_now(work)
        return path

    def authenticate(self, secret: str, scope: str) -> Principal:
        """Whose key this is. Raises InvalidKey (unknown, disabled, expired), Forbidden (wrong scope)."""
        row = self._row_of(secret)
        if row is None or row.disabled:
            raise InvalidKey(
                "Invalid Authentication: the API key is not valid",
                mend="check it, or use one from keys.json in HOME",
            )
        if row.expires_ms is not None and self._expired(row):
            raise InvalidKey("Invalid Authentication: the API key has expired", mend="make a new one")
        if scope not in row.principal.scopes:
            raise Forbidden(
                f"The API you are accessing is not open: this API key lacks the scope {scope}",
                mend=f"use a key with the scope {scope}",
            )
        self._used[row.principal.key_id] = self._now()
        return row.principal

    def _row_of(self, secret: str) -> KeyRow | None:
        """Making a digest takes as long as checking a short request, so each key's is made once."""
        short = hashlib.blake2b(secret.encode(), digest_size=32, key=self._salt).digest()
        digest = self._known.get(short)
        if digest is not None:
            return self._keys.get(digest)
        digest = digest_of(secret, self._secret)
        row = self._keys.get(digest)
        if row is not None:
            self._known[short] = digest
        return row

    async def write_uses(self) -> None:
        """Keep when each key was last used. Call it once a minute: a write for each call would be one too
        many. Raises StoreError."""
        if not self._used:
            return
        used = self._used
        try:
            await self._store.write(self._uses_work())
        except StoreError:
            self._used = used | self._used
            raise

    def write_uses_now(self) -> None:
        """The blocking twin."""
        if self._used:
            self._store.write_now(self._uses_work())

    def _uses_work(self) -> Work[None]:
        used, self._used = self._used, {}

        def work(connection: sqlite3.Connection) -> None:
            for key_id, at_ms in used.items():
                connection.execute("UPDATE api_key SET last_used_ms = ? WHERE id = ?", (at_ms, key_id))

        return work

    def local_principal(self) -> Principal:
        for row in self._local:
            if not row.disabled and not self._expired(row):
                return row.principal
        raise ConfigError(
            "this HOME's local project has no key that may call models",
            field="home",
            mend="make one: perilune keys create NAME",
        )

    def create(
        self,
        name: str,
        scopes: Iterable[str],
        *,
        project_id: int | None = None,
        budget: int | None = None,
        expires_ms: int | None = None,
        actor: str,
    ) -> str:
        """A new key, shown this once. Raises NotFound (project), ConfigError (scopes), InputError."""
        chosen, secret = check_scopes(scopes), new_secret(self._environment)
        check_name(name)
        check_budget(budget)
        if expires_ms is not None and not 0 < expires_ms <= LAST_EXPIRY_MS:
            raise InputError(
                "must be milliseconds since 1970, up to the year 9999",
                field="expires_ms",
                mend="leave it out for a key that does not expire",
            )

        def work(connection: sqlite3.Connection) -> None:
            place = project_id if project_id is not None else first_project(connection)
            if connection.execute("SELECT 1 FROM project WHERE id = ?", (place,)).fetchone() is None:
                raise NotFound(
                    f"no project {place}", field="project", mend="`perilune account show` lists them"
                )
            key_id = self._insert(connection, secret, place, name, chosen, budget, expires_ms)
            detail: audit.Detail = {
                "key": key_id,
                "name": name,
                "hint": hint_of(secret),
                "project": place,
                "scopes": sorted(chosen),
                "budget": budget,
                "expires_ms": expires_ms,
            }
            audit.record(connection, actor, "keys.create", detail, self._now())

        self._store.write_now(work)
        self.load()
        return secret

    def disable(self, key_id: int, *, actor: str) -> None:
        """Effective at once, and for good. Raises NotFound."""
        self._change(
            "UPDATE api_key SET disabled = 1 WHERE id = ?", (), key_id, "keys.disable", {"key": key_id}, actor
        )
        self.load()

    def set_budget(self, key_id: int, budget: int | None, *, actor: str) -> None:
        """The most that the key may spend in all, in nano-USD; None lifts the limit. Raises NotFound."""
        check_budget(budget)
        self._change(
            "UPDATE account SET budget = ? WHERE id = (SELECT account_id FROM api_key WHERE id = ?)",
            (budget,),
            key_id,
            "keys.budget",
            {"key": key_id, "budget": budget},
            actor,
        )

    def states(self) -> list[KeyState]:
        """Every key that was ever made, oldest first."""
        rows = self._store.read(
            """SELECT k.id, k.name, k.hint, p.name, p.id, p.organisation_id, k.scopes, k.created_ms,
                k.expires_ms, k.disabled, a.budget, a.spent, a.reserved, k.last_used_ms
            FROM api_key k JOIN project p ON p.id = k.project_id JOIN account a ON a.id = k.account_id
            ORDER BY k.id"""
        )
        return [_key_state(row, self._used.get(row[0], row[-1])) for row in rows]

    # ---- within

    def _change(
        self,
        statement: str,
        values: tuple[object, ...],
        key_id: int,
        act: str,
        detail: audit.Detail,
        actor: str,
    ) -> None:
        def work(connection: sqlite3.Connection) -> None:
            if connection.execute(statement, (*values, key_id)).rowcount != 1:
                raise NotFound(f"no key {key_id}", field="key", mend="`perilune keys list` lists them")
            audit.record(connection, actor, act, detail, self._now())

        self._store.write_now(work)

    def _insert(
        self,
        connection: sqlite3.Connection,
        secret: str,
        project_id: int,
        name: str,
        scopes: Iterable[str],
        budget: int | None,
        expires_ms: int | None,
    ) -> int:
        account = connection.execute("INSERT INTO account (budget) VALUES (?) RETURNING id", (budget,))
        made = connection.execute(
            """INSERT INTO api_key
                (project_id, account_id, digest, hint, name, scopes, created_ms, expires_ms)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id""",
            (
                project_id,
                account.fetchone()[0],
                digest_of(secret, self._secret),
                hint_of(secret),
                name,
                " ".join(sorted(scopes)),
                self._now(),
                expires_ms,
            ),
        )
        return int(made.fetchone()[0])

    def _expired(self, row: KeyRow) -> bool:
        return row.expires_ms is not None and row.expires_ms <= self._clock() * 1000

    def _now(self) -> int:
        return int(self._clock() * 1000)


def check_budget(budget: int | None) -> None:
    """Raises InputError for less than nothing, or more than the books can hold."""
    if budget is not None and not 0 <= budget < 1 << 62:
        raise InputError("must be zero or more", field="budget", mend="leave it out for no limit")


def _key_state(row: tuple[Any, ...], last_used_ms: int | None) -> KeyState:
    number, name, hint, project, project_id, organisation_id, scopes, created_ms, *rest, _ = row
    expires_ms, disabled, budget, spent, reserved = rest
    return KeyState(
        id=number,
        name=name,
        hint=hint,
        project=project,
        project_id=project_id,
        organisation_id=organisation_id,
        scopes=tuple(scopes.split()),
        created_ms=created_ms,
        expires_ms=expires_ms,
        disabled=bool(disabled),
        budget=budget,
        spent=spent,
        reserved=reserved,
        last_used_ms=last_used_ms,
    )


def _key_row(row: tuple[Any, ...]) -> KeyRow:
    number, name, project_id, organisation_id, scopes, digest, hint, expires_ms, disabled = row
    principal = Principal(number, name, project_id, organisation_id, frozenset(scopes.split()))
    return KeyRow(principal, digest, hint, expires_ms, bool(disabled))


def _read_keys_file(path: Path) -> dict[str, str]:
    """The keys that a start left behind which died before it entered them."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}", mend="move it away; the next start makes new keys"
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(found.get(entry), str) and well_formed(found[entry]) for entry in FIRST_KEYS
    ):
        raise ConfigError(
            f"{path} does not hold the keys {' and '.join(FIRST_KEYS)}",
            mend="move it away; the next start makes new keys",
        )
    return found
