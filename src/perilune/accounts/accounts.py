"""The door to the accounts room: who may call, what it costs, what has been spent.

    with Accounts.open(home, settings) as accounts:
        principal = accounts.authenticate(secret, "chat")
        reservation = await accounts.reserve(principal, request_id=..., ...)
        charge = await accounts.settle(reservation, usage)

One process owns a HOME's accounts: take `store.HomeLock` before `open`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self, cast

from perilune.accounts import audit, books, folding
from perilune.accounts.counters import Counters
from perilune.accounts.keyring import KEYS_FILE, Keyring
from perilune.accounts.keys import Principal
from perilune.accounts.ledger import Ledger
from perilune.accounts.limits import Gate, Limits
from perilune.accounts.organisations import LOCAL, Organisations
from perilune.accounts.posting import CallPosting
from perilune.accounts.prices import NANO_PER_USD, SEARCH, Buckets, PriceBook, TokenCounts
from perilune.accounts.rows import Charge, Outcome, Reservation, UsageRow
from perilune.accounts.tables import SCHEMA
from perilune.accounts.tiers import TierBook
from perilune.accounts.wallet import Prepaid, Wallets
from perilune.errors import AccountError, HomeLocked, StoreError
from perilune.settings import Settings
from perilune.store import Reader, Store

__all__ = ["DATABASE", "KEYS_FILE", "LOCAL", "Accounts"]

DATABASE = "accounts.db"
SYNC_EVERY_S = 0.2
"""How often the disk is told of the ledger, where `ledger_durability` is `crash`."""
COMMAND_LINE = "command line"
"""Who acted, where no key did."""


class _Watcher(Reader):
    """A store that can only be read."""

    async def write(self, work: object) -> NoReturn:
        self.write_now(work)

    def write_now(self, work: object) -> NoReturn:
        raise HomeLocked(
            "a running Perilune owns this HOME, and its admin door is closed",
            field="home",
            mend="start it with --admin-port, or stop it first",
        )


class Accounts:
    """Organisations, keys, price book, limits and ledger of one HOME."""

    def __init__(
        self,
        home: Path,
        store: Store,
        settings: Settings,
        prices: PriceBook,
        tiers: TierBook,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Use `open`."""
        self.home = home
        self.prices = prices
        self.prepaid = Prepaid(round(settings.activation_usd * NANO_PER_USD)) if settings.prepaid else None
        self.ledger = Ledger(store, clock, self.prepaid)
        self.keyring = Keyring(home, store, clock, settings.key_environment)
        self.organisations = Organisations(store, tiers, settings.tier, clock)
        self.wallets = Wallets(store, clock)
        self.limits = Limits()
        self.counters = Counters()
        self.store = store
        self._keep_months = settings.ledger_months
        self._clock = clock
        self._gates: dict[str, Gate] = {}
        """Request id -> its place in the limits, while the call runs."""
        self._searching: set[str] = set()
        """Ids of searches that are reserved and neither settled nor released."""

    @classmethod
    def open(
        cls,
        home: Path,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        *,
        close_orphans: bool = True,
    ) -> Self:
        """Open HOME/accounts.db, close what a dead process left open, write keys.json at the first start.

        Without `close_orphans` the books are left as they are found, to be proved: no call may be made then.
        Raises ConfigError (price book, tiers, key secret), StoreError."""
        prices, tiers = PriceBook.load(settings), TierBook.load(settings)
        later = SYNC_EVERY_S if settings.ledger_durability == "crash" else 0.0
        store = Store(home / DATABASE, SCHEMA, sync_every_s=later, posting=CallPosting())
        try:
            accounts = cls(home, store, settings, prices, tiers, clock)
            if close_orphans:
                accounts.ledger.close_orphans()
            accounts.ensure_keys_file()
            accounts.keyring.load()
            accounts.organisations.load()
        except BaseException:
            store.close()
            raise
        return accounts

    @classmethod
    def peek(cls, home: Path, settings: Settings) -> Self:
        """Read-only, beside the process that owns HOME: whatever would write raises HomeLocked.

        Raises ConfigError, StoreError (no accounts there yet, or those of another version)."""
        prices, tiers = PriceBook.load(settings), TierBook.load(settings)
        watcher = _Watcher(home / DATABASE)
        store = cast(Store, watcher)
        try:
            watcher.expect(SCHEMA)
            accounts = cls(home, store, settings, prices, tiers)
            accounts.keyring.load()
            accounts.organisations.load()
        except BaseException:
            store.close()
            raise
        return accounts

    def close(self) -> None:
        with contextlib.suppress(StoreError):  # of a store that is broken others have told, and of more
            self.keyring.write_uses_now()
        self.store.close()

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
        return self.keyring.ensure_file()

    def authenticate(self, secret: str, scope: str) -> Principal:
        """Whose key this is. Raises InvalidKey (unknown, disabled, expired), Forbidden (wrong scope)."""
        return self.keyring.authenticate(secret, scope)

    def local_principal(self) -> Principal:
        """Whom the command line acts for when no server stands between: HOME's first project key."""
        return self.keyring.local_principal()

    def create_key(
        self,
        name: str,
        scopes: Iterable[str] = ("chat",),
        *,
        project_id: int | None = None,
        budget: int | None = None,
        expires_ms: int | None = None,
        actor: str = COMMAND_LINE,
    ) -> str:
        """A new key of that project (of the local one), shown this once. `budget` is the most that it may
        spend, in nano-USD."""
        return self.keyring.create(
            name, scopes, project_id=project_id, budget=budget, expires_ms=expires_ms, actor=actor
        )

    def disable_key(self, key_id: int, *, actor: str = COMMAND_LINE) -> None:
        """Effective at once, and for good. Raises NotFound."""
        self.keyring.disable(key_id, actor=actor)

    def set_key_budget(self, key_id: int, budget: int | None, *, actor: str = COMMAND_LINE) -> None:
        """The most that the key may spend in all, in nano-USD; None lifts the limit. Raises NotFound."""
        self.keyring.set_budget(key_id, budget, actor=actor)

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
        least_tokens: int | None = None,
    ) -> Reservation:
        """Let the call in, by its organisation's rate tier, and reserve: see `Ledger.reserve`. `price` is an
        id in the price book, today's version of which is used. `settle` ends both.

        Raises LimitReached also for a rate limit, with `retry_after_s` where waiting helps."""
        version = self.prices.price(price)
        estimate = prompt_bound if prompt_estimate is None else prompt_estimate
        try:
            tier = self.organisations.tier(principal.organisation_id)
            gate = self.limits.enter(principal.organisation_id, tier, estimate + max_tokens, principal.label)
            try:
                reservation = await self.ledger.reserve(
                    principal,
                    request_id=request_id,
                    model=model,
                    price=version,
                    prompt_bound=prompt_bound,
                    prompt_estimate=estimate,
                    max_tokens=max_tokens,
                    least_tokens=least_tokens,
                )
            except BaseException:
                gate.undo()
                raise
        except AccountError as error:
            self.counters.refused(error.code)
            raise
        if reservation.max_tokens < max_tokens:
            gate.lower(max_tokens - reservation.max_tokens)
        self._gates[request_id] = gate
        return reservation

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
        gate = self._gates.pop(reservation.request_id, None)
        try:
            charge = await self.ledger.settle(
                reservation, Buckets.of(usage), reasoning=reasoning, outcome=outcome, estimated=estimated
            )
        finally:
            if gate is not None:
                gate.leave()
        if gate is not None:
            self.counters.settled(charge)
        return charge

    async def reserve_search(self, principal: Principal, *, request_id: str) -> Reservation:
        """Set aside the price of one web search: see `Ledger.reserve_search`. It is no model call, so rate
        limits do not count it. `settle_search` or `release_search` ends it."""
        price = self.prices.price(SEARCH)
        try:
            reservation = await self.ledger.reserve_search(principal, request_id=request_id, price=price)
        except AccountError as error:
            self.counters.refused(error.code)
            raise
        self._searching.add(request_id)
        return reservation

    async def settle_search(self, reservation: Reservation, *, found: bool) -> Charge:
        """Charge a search that was made, or with not `found` one that failed: nothing. Later settles of the
        same search return the first one's charge."""
        outcome: Outcome = "finished" if found else "failed"
        charge = await self.ledger.settle(reservation, Buckets(searches=int(found)), outcome=outcome)
        if reservation.request_id in self._searching:
            self._searching.discard(reservation.request_id)
            self.counters.settled(charge)
        return charge

    async def release_search(self, reservation: Reservation) -> None:
        """Of a search that nobody asked for nothing stays in the books."""
        self._searching.discard(reservation.request_id)
        await self.ledger.release(reservation)

    def usage_rows(
        self, project_id: int | None = None, *, before: str = "~", limit: int = 100
    ) -> list[UsageRow]:
        """Calls, newest first."""
        return self.ledger.rows(project_id, before=before, limit=limit)

    def verify(self) -> tuple[str, ...]:
        """What in the books does not agree, in words; none when all does."""
        return books.verify(self.store)

    async def fold_step(self) -> int:
        """Fold some of the rows of months that are not kept; how many, 0 when none is left."""
        return await folding.fold_step(self.store, self._fold_before())

    def fold(self, *, actor: str = COMMAND_LINE) -> int:
        """Fold all of them; how many rows. Writes a line in the audit when there were any."""
        before = self._fold_before()
        done = folding.fold_all(self.store, before)
        if done:
            detail: audit.Detail = {"calls": done, "settled_before_ms": before}
            now = int(self._clock() * 1000)
            self.store.write_now(
                lambda connection: audit.record(connection, actor, "ledger.fold", detail, now)
            )
        return done

    def _fold_before(self) -> int:
        return folding.first_kept_ms(self._clock(), self._keep_months)
