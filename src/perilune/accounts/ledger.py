"""The ledger: one row per model call and per web search, written before it is made and settled before its
last byte leaves.

    open      reserve the most the call can cost in its key's and its project's account, or refuse
    settle    replace the reservation by the charge; a second settle changes nothing
    orphan    an open row found at start: its process died; it is settled by what is known of it

Who may call is decided by what is left in memory (`accounts/purses.py`). What was decided is entered in the
day book (`accounts/entries.py`), which is safe at once, and posted a moment later to the row and to all that
it moves, in one transaction (`accounts/posting.py`), so they cannot disagree; `accounts/books.py` proves it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable

from perilune.accounts.entries import LONGEST, Opened, Released
from perilune.accounts.keys import Principal
from perilune.accounts.priced import enter_price
from perilune.accounts.prices import Buckets, Price, upper_bound
from perilune.accounts.purses import Purse, Purses
from perilune.accounts.rows import (
    SEARCH_MODEL,
    Charge,
    Outcome,
    Reservation,
    UsageRow,
    find_row,
    list_rows,
)
from perilune.accounts.settling import Ending, charge_of, close_orphans, find_charge, settled
from perilune.accounts.used_ids import UsedIds
from perilune.accounts.wallet import Prepaid
from perilune.errors import InputError, StoreError
from perilune.store import Store


class Ledger:
    """The money side of one accounts.db. One process owns it (see `store.HomeLock`)."""

    def __init__(
        self, store: Store, clock: Callable[[], float] = time.time, prepaid: Prepaid | None = None
    ) -> None:
        """With `prepaid`, calls are paid from the wallets of organisations; those that are under way when
        this changes are settled as they were reserved."""
        self._store = store
        self._clock = clock
        self._prepaid = prepaid
        self._lock = threading.Lock()
        """Held while something is decided and entered."""
        self._purses = Purses(store)
        self._used = UsedIds(store)
        self._open: set[str] = set()
        self._prices: dict[str, tuple[Price, int]] = {}
        """By version, those that are in the tables, with their numbers there."""
        self._late: dict[str, tuple[Reservation, Ending]] = {}
        """Calls that have ended and that a full disk did not let settle."""

    async def reserve(
        self,
        principal: Principal,
        *,
        request_id: str,
        model: str,
        price: Price,
        prompt_bound: int,
        prompt_estimate: int,
        max_tokens: int,
        least_tokens: int | None = None,
    ) -> Reservation:
        """Open a row for a call that sends at most `prompt_bound` and receives at most `max_tokens` tokens.
        With `least_tokens` the answer may be cut, down to so many, to what budgets and balance still cover.
        When this returns it is as safe as `ledger_durability` says.

        Raises LimitReached (key budget), InsufficientBalance (project budget, balance), InputError for a
        request id that was used before. Then nothing is reserved, nor when the wait is cancelled."""
        price_id = self._price_id(price) or await self._enter_price(price)
        prepaid = self._prepaid is not None
        with self._lock:
            purse = self._purses.of(principal)
            tokens = max_tokens
            if least_tokens is not None and least_tokens < max_tokens:
                tokens = purse.affordable(price, prompt_bound, least_tokens, max_tokens, prepaid)
            amount = upper_bound(price, prompt_bound, tokens)
            made = Reservation(request_id, principal, price, amount, tokens, prepaid)
            self._hold(purse, made, model, price_id, prompt_estimate)
        if self._store.is_synced:
            await self._secure(made)
        return made

    async def reserve_search(self, principal: Principal, *, request_id: str, price: Price) -> Reservation:
        """Open a row for one web search; `settle` with one of `searches` charges it, `release` takes it back.

        Raises what `reserve` raises."""
        price_id = self._price_id(price) or await self._enter_price(price)
        made = Reservation(request_id, principal, price, price.search, 0, self._prepaid is not None)
        with self._lock:
            self._hold(self._purses.of(principal), made, SEARCH_MODEL, price_id, 0)
        if self._store.is_synced:
            await self._secure(made)
        return made

    async def release(self, made: Reservation) -> None:
        """Take the row of a search that was not made out again. Does nothing to one that is settled."""
        with self._lock:
            if made.request_id not in self._open:
                return
            purse = self._purses.of(made.principal)
            entry = Released(made.request_id, made.amount, purse.payers(made.prepaid))
            try:
                self._store.enter(entry)
            except StoreError:
                self._late[made.request_id] = (made, Ending(Buckets(), 0, "aborted", False, self._now()))
                raise
            purse.move(entry)
            self._open.discard(made.request_id)
            self._used.discard(made.request_id)
        await self._store.secure()

    async def settle(
        self,
        reservation: Reservation,
        buckets: Buckets,
        *,
        reasoning: int = 0,
        outcome: Outcome = "finished",
        estimated: bool = False,
    ) -> Charge:
        """Close the row. When this returns it is as safe as `ledger_durability` says; cancelling the wait
        does not undo it. The first settle of a request wins, later ones return its charge. Where it raises
        StorageFull, the next one or `settle_late` settles it so when there is room."""
        charge = self._settle(reservation, Ending(buckets, reasoning, outcome, estimated, self._now()))
        if self._store.is_synced:
            await self._store.secure()
        return charge

    async def settle_late(self) -> int:
        """Settle what a full disk did not take, so that nothing stays reserved for calls that are over; how
        many. Raises StorageFull while it still is."""
        done = 0
        for reservation, ending in tuple(self._late.values()):
            self._settle(reservation, ending)
            done += 1
        await self._store.secure()
        return done

    def close_orphans(self) -> int:
        """Settle the rows that a dead process left open; how many. Call it before any new `reserve`.

        The prompt, as it was guessed, is billed as fresh input, for the endpoint most likely read it; what
        came back is unknown and not billed. The row says that it is an estimate."""
        now = self._now()
        try:
            return self._store.write_now(lambda connection: close_orphans(connection, now))
        except sqlite3.IntegrityError as error:
            raise StoreError(
                f"the books do not agree, so the calls that were left open cannot be closed: {error}",
                mend="`perilune ledger verify` says where; put a copy of accounts.db back, and its alone",
            ) from error

    def row(self, request_id: str) -> UsageRow | None:
        return find_row(self._store, request_id)

    def rows(self, project_id: int | None = None, *, before: str = "~", limit: int = 100) -> list[UsageRow]:
        """Newest first; page on with the last id as `before`."""
        return list_rows(self._store, project_id, before, limit)

    def _hold(self, purse: Purse, made: Reservation, model: str, price_id: int, prompt: int) -> None:
        """Reserve everywhere and enter the row, or raise; then nothing of it stays."""
        principal, request_id = made.principal, made.request_id
        if self._used.has(request_id):
            raise InputError(
                f"{request_id} was used before", field="request_id", mend="every call needs its own"
            )
        purse.refuse_beyond(principal, made.amount, self._prepaid)
        entry = Opened(
            *(request_id, principal.key_id, principal.project_id, price_id, model),
            *(made.amount, prompt, self._now(), purse.payers(made.prepaid)),
        )
        self._store.enter(entry, keep=LONGEST * (len(self._open) + 1))
        purse.move(entry)
        self._open.add(request_id)
        self._used.add(request_id)

    async def _secure(self, made: Reservation) -> None:
        try:
            await self._store.secure()
        except BaseException:
            with contextlib.suppress(StoreError):  # then it is settled late
                self._settle(made, Ending(Buckets(), 0, "aborted", False, self._now()))
            raise

    def _settle(self, made: Reservation, ending: Ending) -> Charge:
        request_id = made.request_id
        with self._lock:
            if request_id not in self._open:
                charge = find_charge(self._store, made)
                if charge is not None:
                    return charge
            if self._late:
                ending = self._late.get(request_id, (made, ending))[1]
            try:
                purse = self._purses.of(made.principal)
                payers = purse.payers(made.prepaid)
                entry = settled(request_id, made.amount, payers, made.price, ending, purse.wallet.voucher)
                self._store.enter(entry)
            except StoreError:
                self._late[request_id] = (made, ending)
                raise
            self._late.pop(request_id, None)
            purse.move(entry)
            self._open.discard(request_id)
        return charge_of(entry, made.price.version)

    def _price_id(self, price: Price) -> int | None:
        known = self._prices.get(price.version)
        return known[1] if known is not None and known[0] is price else None

    async def _enter_price(self, price: Price) -> int:
        number = await self._store.write(lambda connection: enter_price(connection, price))
        self._prices[price.version] = (price, number)
        return number

    def _now(self) -> int:
        return int(self._clock() * 1000)
