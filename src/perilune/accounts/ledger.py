"""The ledger: one row per model call and per web search, written before it is made and settled before its
last byte leaves.

    open      reserve the most the call can cost in its key's and its project's account, or refuse
    settle    replace the reservation by the charge; a second settle changes nothing
    orphan    an open row found at start: its process died; it is settled by what is known of it

A row and what it moves, the two accounts and with `prepaid` the organisation's wallet, change in one
transaction (`accounts/holding.py`, `accounts/settling.py`), so they cannot disagree; `accounts/books.py`
proves it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable

from perilune.accounts.holding import Pots, affordable, open_row, room, take, take_prepaid
from perilune.accounts.keys import Principal
from perilune.accounts.prices import Buckets, Price, upper_bound
from perilune.accounts.rows import (
    SEARCH_MODEL,
    Charge,
    Outcome,
    Reservation,
    UsageRow,
    find_row,
    list_rows,
)
from perilune.accounts.settling import Ending, Held, close, close_abandoned, close_found, close_orphans
from perilune.accounts.wallet import Prepaid
from perilune.errors import StorageFull, StoreError
from perilune.store import Store, Work


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
        self._pots: dict[int, Pots] = {}
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
        now = self._now()
        prepaid = self._prepaid

        def work(connection: sqlite3.Connection) -> Reservation:
            tokens = max_tokens
            if least_tokens is not None and least_tokens < max_tokens:
                free = room(connection, principal, self._pots_of(connection, principal), prepaid is not None)
                tokens = affordable(price, prompt_bound, least_tokens, max_tokens, free)
            amount = upper_bound(price, prompt_bound, tokens)
            made = Reservation(request_id, principal, price, amount, tokens, prepaid is not None)
            self._hold(connection, made, model, prompt_estimate, now)
            return made

        try:
            return await self._store.write(work, brief=True)
        except asyncio.CancelledError:
            # The row may be on its way; writes run in order, so this one comes after it.
            await self._store.write(lambda connection: close_abandoned(connection, request_id, now))
            raise

    async def reserve_search(self, principal: Principal, *, request_id: str, price: Price) -> Reservation:
        """Open a row for one web search; `settle` with one of `searches` charges it, `release` takes it back.

        Raises what `reserve` raises."""
        now = self._now()
        made = Reservation(request_id, principal, price, price.search, 0, self._prepaid is not None)
        try:
            await self._store.write(lambda connection: self._hold(connection, made, SEARCH_MODEL, 0, now))
        except asyncio.CancelledError:
            await self.release(made)
            raise
        return made

    async def release(self, reservation: Reservation) -> None:
        """Take the row of a search that was not made out again. Does nothing to one that is settled."""
        ending = Ending(Buckets(), 0, "aborted", False, self._now())

        def work(connection: sqlite3.Connection) -> None:
            pots = self._pots_of(connection, reservation.principal)
            if close(connection, Held.by(reservation, pots), ending):
                connection.execute("DELETE FROM request WHERE id = ?", (reservation.request_id,))

        await self._store.write(work)

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
        StorageFull, `settle_late` settles it so when there is room."""
        ending = Ending(buckets, reasoning, outcome, estimated, self._now())
        try:
            return await self._store.write(self._closing(reservation, ending), brief=True)
        except StorageFull:
            self._late.setdefault(reservation.request_id, (reservation, ending))
            raise

    async def settle_late(self) -> int:
        """Settle what a full disk did not take, so that nothing stays reserved for calls that are over; how
        many. Raises StorageFull while it still is."""
        done = 0
        for request_id, (reservation, ending) in tuple(self._late.items()):
            await self._store.write(self._closing(reservation, ending))
            del self._late[request_id]
            done += 1
        return done

    def _closing(self, reservation: Reservation, ending: Ending) -> Work[Charge]:
        def work(connection: sqlite3.Connection) -> Charge:
            held = Held.by(reservation, self._pots_of(connection, reservation.principal))
            return close(connection, held, ending) or close_found(connection, held.request_id, ending)

        return work

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
                mend="`perilune ledger verify` says where; restore accounts.db from a backup",
            ) from error

    def row(self, request_id: str) -> UsageRow | None:
        return find_row(self._store, request_id)

    def rows(self, project_id: int | None = None, *, before: str = "~", limit: int = 100) -> list[UsageRow]:
        """Newest first; page on with the last id as `before`."""
        return list_rows(self._store, project_id, before, limit)

    def _hold(
        self, connection: sqlite3.Connection, made: Reservation, model: str, prompt_estimate: int, now: int
    ) -> None:
        """Reserve everywhere and write the row, or raise; then nothing of it stays."""
        principal = made.principal
        take(connection, principal, self._pots_of(connection, principal), made.amount)
        if self._prepaid is not None and made.prepaid:
            take_prepaid(connection, principal, made.amount, self._prepaid)
        open_row(connection, made, model, prompt_estimate, now)

    def _pots_of(self, connection: sqlite3.Connection, principal: Principal) -> Pots:
        """A key's accounts never change, so they are looked up once. On the writer thread."""
        pots = self._pots.get(principal.key_id)
        if pots is None:
            found = connection.execute(
                """SELECT k.account_id, p.account_id FROM api_key k JOIN project p ON p.id = k.project_id
                WHERE k.id = ?""",
                (principal.key_id,),
            ).fetchone()
            pots = self._pots[principal.key_id] = Pots(*found)
        return pots

    def _now(self) -> int:
        return int(self._clock() * 1000)
