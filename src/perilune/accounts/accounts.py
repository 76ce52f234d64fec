"""The door to the accounts room: who may call, what it costs, what has been spent.

    with Accounts.open(home, settings) as accounts:
        principal = accounts.authenticate(secret, "chat")
        reservation = await accounts.reserve(principal, request_id=..., ...)
        charge = await accounts.settle(reservation, usage)

One process owns a HOME's accounts: take `store.HomeLock` before `open`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from perilune.accounts.keys import (
    KeyRow,
    Principal,
    check_scopes,
    digest_of,
    hint_of,
    key_secret,
    new_secret,
    well_formed,
)
from perilune.accounts.ledger import Charge, Ledger, Outcome, Reservation, UsageRow
from perilune.accounts.prices import Buckets, PriceBook, TokenCounts
from perilune.accounts.tables import SCHEMA
from perilune.errors import ConfigError, Forbidden, InvalidKey, NotFound
from perilune.settings import Settings
from perilune.store import Store, replace_file

DATABASE = "accounts.db"
KEYS_FILE = "keys.json"
LOCAL = "local"
"""Name of the organisation and project that a HOME starts with."""
FIRST_KEYS = {"admin_key": ("first admin key", "admin"), "project_key": ("first project key", "chat")}
"""Entry of keys.json -> the key's name and scopes."""

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_request_id() -> str:
    """26 characters that sort by time of making: 48 bits of milliseconds, 80 random bits."""
    value = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


class Accounts:
    """Keys, price book and ledger of one HOME."""

    def __init__(
        self, home: Path, store: Store, prices: PriceBook, clock: Callable[[], float] = time.time
    ) -> None:
        """Use `open`."""
        self.home = home
        self.prices = prices
        self.ledger = Ledger(store, clock)
        self._store = store
        self._clock = clock
        self._secret = key_secret(home, has_keys=bool(store.read("SELECT 1 FROM api_key LIMIT 1")))
        self._keys: dict[bytes, KeyRow] = {}
        self._local: Principal | None = None

    @classmethod
    def open(cls, home: Path, settings: Settings, clock: Callable[[], float] = time.time) -> Self:
        """Open HOME/accounts.db, close what a dead process left open, write keys.json at the first start.

        Raises ConfigError (price book, key secret), StoreError."""
        prices = PriceBook.load(settings)
        store = Store(home / DATABASE, SCHEMA)
        try:
            accounts = cls(home, store, prices, clock)
            accounts.ledger.close_orphans()
            accounts.ensure_keys_file()
            accounts._load_keys()
        except BaseException:
            store.close()
            raise
        return accounts

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- keys

    def ensure_keys_file(self) -> Path:
        """HOME/keys.json (mode 0600: `admin_key`, `project_key`), made at the first start. Its owner may
        move it away later: it is not made again.

        The file is written before the keys are entered, so a crash between the two loses neither."""
        path = self.home / KEYS_FILE
        if self._store.read("SELECT 1 FROM api_key LIMIT 1"):
            return path
        if path.exists():
            found = _read_keys_file(path)
        else:
            found = {entry: new_secret() for entry in FIRST_KEYS}
            replace_file(path, (json.dumps(found, indent=2) + "\n").encode())

        def work(connection: sqlite3.Connection) -> None:
            project_id = _first_project(connection)
            for entry, (name, scope) in FIRST_KEYS.items():
                self._insert(connection, found[entry], project_id, name, {scope}, None, None)

        self._store.write_now(work)
        return path

    def authenticate(self, secret: str, scope: str) -> Principal:
        """Whose key this is. Raises InvalidKey (unknown, disabled, expired), Forbidden (wrong scope)."""
        refused = InvalidKey("the API key is not valid", mend="check it, or use one from keys.json in HOME")
        if not well_formed(secret):
            raise refused
        row = self._keys.get(digest_of(secret, self._secret))
        if row is None or row.disabled:
            raise refused
        if row.expires_ms is not None and row.expires_ms <= self._clock() * 1000:
            raise InvalidKey("the API key has expired", mend="make a new one")
        if scope not in row.principal.scopes:
            raise Forbidden(f"this API key lacks the scope {scope}", mend=f"use a key with the scope {scope}")
        return row.principal

    def local_principal(self) -> Principal:
        """Whom the command line acts for when no server stands between: HOME's first project key."""
        if self._local is None:
            raise ConfigError("this HOME has no key for its local project", field="home")
        return self._local

    def create_key(
        self,
        name: str,
        scopes: Iterable[str] = ("chat",),
        *,
        budget: int | None = None,
        expires_ms: int | None = None,
    ) -> str:
        """A new key of the local project, shown this once. `budget` is the most that it may spend, in
        nano-USD."""
        chosen, secret = check_scopes(scopes), new_secret()
        self._store.write_now(
            lambda connection: self._insert(
                connection, secret, _first_project(connection), name, chosen, budget, expires_ms
            )
        )
        self._load_keys()
        return secret

    def disable_key(self, key_id: int) -> None:
        """Effective at once, and for good. Raises NotFound."""

        def work(connection: sqlite3.Connection) -> int:
            return connection.execute("UPDATE api_key SET disabled = 1 WHERE id = ?", (key_id,)).rowcount

        if not self._store.write_now(work):
            raise NotFound(f"no key {key_id}", field="key")
        self._load_keys()

    def set_key_budget(self, key_id: int, budget: int | None) -> None:
        """The most that the key may spend in all, in nano-USD; None lifts the limit. Raises NotFound."""
        statement = "UPDATE account SET budget = ? WHERE id = (SELECT account_id FROM api_key WHERE id = ?)"

        def work(connection: sqlite3.Connection) -> int:
            return connection.execute(statement, (budget, key_id)).rowcount

        if not self._store.write_now(work):
            raise NotFound(f"no key {key_id}", field="key")

    # ---- money

    async def reserve(
        self,
        principal: Principal,
        *,
        request_id: str,
        model: str,
        price: str,
        prompt_bound: int,
        max_tokens: int,
        prompt_estimate: int | None = None,
    ) -> Reservation:
        """See `Ledger.reserve`; `price` is an id in the price book, today's version of which is used."""
        return await self.ledger.reserve(
            principal,
            request_id=request_id,
            model=model,
            price=self.prices.price(price),
            prompt_bound=prompt_bound,
            prompt_estimate=prompt_bound if prompt_estimate is None else prompt_estimate,
            max_tokens=max_tokens,
        )

    async def settle(
        self,
        reservation: Reservation,
        usage: TokenCounts,
        *,
        reasoning: int = 0,
        outcome: Outcome = "finished",
        estimated: bool = False,
    ) -> Charge:
        """See `Ledger.settle`."""
        return await self.ledger.settle(
            reservation, Buckets.of(usage), reasoning=reasoning, outcome=outcome, estimated=estimated
        )

    def usage_rows(
        self, project_id: int | None = None, *, before: str = "~", limit: int = 100
    ) -> list[UsageRow]:
        """Calls, newest first."""
        return self.ledger.rows(project_id, before=before, limit=limit)

    def verify(self) -> tuple[str, ...]:
        """What in the books does not agree, in words; none when all does."""
        return self.ledger.verify()

    # ---- within

    def _insert(
        self,
        connection: sqlite3.Connection,
        secret: str,
        project_id: int,
        name: str,
        scopes: Iterable[str],
        budget: int | None,
        expires_ms: int | None,
    ) -> None:
        account = connection.execute("INSERT INTO account (budget) VALUES (?) RETURNING id", (budget,))
        connection.execute(
            """INSERT INTO api_key
                (project_id, account_id, digest, hint, name, scopes, created_ms, expires_ms)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
            (
                project_id,
                account.fetchone()[0],
                digest_of(secret, self._secret),
                hint_of(secret),
                name,
                " ".join(sorted(scopes)),
                int(self._clock() * 1000),
                expires_ms,
            ),
        )

    def _load_keys(self) -> None:
        """All keys into memory: authentication reads no disk. This process is the only writer."""
        rows = self._store.read(
            """SELECT k.id, k.name, k.project_id, p.organisation_id, k.scopes, k.digest, k.hint,
                k.expires_ms, k.disabled
            FROM api_key k JOIN project p ON p.id = k.project_id ORDER BY k.id"""
        )
        found = [_key_row(row) for row in rows]
        self._keys = {row.digest: row for row in found}
        usable = (row.principal for row in found if not row.disabled)
        self._local = next((principal for principal in usable if "chat" in principal.scopes), None)


def _key_row(row: tuple[Any, ...]) -> KeyRow:
    number, name, project_id, organisation_id, scopes, digest, hint, expires_ms, disabled = row
    principal = Principal(number, name, project_id, organisation_id, frozenset(scopes.split()))
    return KeyRow(principal, digest, hint, expires_ms, bool(disabled))


def _first_project(connection: sqlite3.Connection) -> int:
    """The local project, made at the first start; it has no budget."""
    found = connection.execute("SELECT id FROM project ORDER BY id LIMIT 1").fetchone()
    if found is not None:
        return int(found[0])
    organisation = connection.execute("INSERT INTO organisation (name) VALUES (?) RETURNING id", (LOCAL,))
    account = connection.execute("INSERT INTO account (budget) VALUES (NULL) RETURNING id")
    made = connection.execute(
        "INSERT INTO project (organisation_id, account_id, name) VALUES (?, ?, ?) RETURNING id",
        (organisation.fetchone()[0], account.fetchone()[0], LOCAL),
    )
    return int(made.fetchone()[0])


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
