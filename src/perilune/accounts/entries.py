"""What a call writes into the day book of accounts.db: that it begins, how it ended, that it was taken back.

An entry says all that posting it needs (`accounts/posting.py`), so that it can be posted by a process that
knows nothing else of the call.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from perilune.accounts.rows import Outcome


class Payers(NamedTuple):
    """Whose money a call moves."""

    key: int
    """The account of its key."""
    project: int
    """The account of its project."""
    wallet: int
    """The organisation whose wallet pays; 0 where none does."""


Moves = tuple[int, int, int]
"""What an entry adds to sums, in nano-USD: to what is spent, to what is reserved, and to that part of what is
spent which was granted credit."""


class Opened(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    request_id: str
    key_id: int
    project_id: int
    price_id: int
    model: str
    amount: int
    """Nano-USD set aside."""
    prompt: int
    """Its tokens, as good as is known."""
    at_ms: int
    payers: Payers

    @property
    def moves(self) -> Moves:
        return 0, self.amount, 0


class Settled(msgspec.Struct, frozen=True, array_like=True, tag="settle"):
    request_id: str
    outcome: Outcome
    estimated: bool
    charge: int
    granted: int
    """Of the charge, the part that granted credit pays."""
    uncached: int
    cached: int
    output: int
    searches: int
    reasoning: int
    at_ms: int
    amount: int
    """What had been set aside."""
    payers: Payers

    @property
    def moves(self) -> Moves:
        return self.charge, -self.amount, self.granted


class Released(msgspec.Struct, frozen=True, array_like=True, tag="release"):
    request_id: str
    amount: int
    payers: Payers

    @property
    def moves(self) -> Moves:
        return 0, -self.amount, 0


Entry = Opened | Settled | Released
LONGEST = 512
"""Bytes of a `Settled` with its checksum, at most: eleven integers and an id."""
