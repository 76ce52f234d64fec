"""What calls are let in by, held in memory, is at every moment what tables and day book say."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perilune.accounts.accounts import Accounts
from perilune.accounts.entries import LONGEST, Payers, Settled
from perilune.accounts.keys import Principal
from perilune.accounts.posting import CallPosting
from perilune.accounts.prices import Buckets
from perilune.accounts.purses import Purse, Purses
from perilune.accounts.rows import Reservation
from perilune.accounts.used_ids import LATEST, UsedIds
from perilune.chat.messages import Usage
from perilune.errors import AccountError, InputError
from perilune.settings import Settings
from perilune.store import Store, writer

DOLLAR = 10**9


@pytest.fixture
def accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Accounts]:
    monkeypatch.setattr(writer, "POST_EVERY_S", 600.0)
    monkeypatch.setattr(writer, "POST_AT", 7)
    with Accounts.open(tmp_path, Settings(home=tmp_path, prepaid=True, activation_usd=0)) as accounts:
        accounts.wallets.enter(1, "deposit", DOLLAR, "first", actor="test")
        yield accounts


def held(purse: Purse) -> tuple[object, ...]:
    key, project, wallet = purse.key, purse.project, purse.wallet
    return (
        *(key.budget, key.spent, key.reserved, project.budget, project.spent, project.reserved),
        *(wallet.cash, wallet.voucher, wallet.reserved, wallet.deposited),
    )


def in_memory(accounts: Accounts, principal: Principal) -> tuple[object, ...]:
    return held(accounts.ledger._purses.of(principal))


def anew(accounts: Accounts, principal: Principal) -> tuple[object, ...]:
    return held(Purses(accounts.store).of(principal))


class Caller:
    """Does at random what users and operators do."""

    def __init__(self, accounts: Accounts, chance: random.Random) -> None:
        self.accounts = accounts
        self.chance = chance
        self.keys = [accounts.authenticate(accounts.create_key(f"k{n}"), "chat") for n in range(3)]
        self.open: list[Reservation] = []
        self.searches: list[Reservation] = []
        self.count = 0

    async def act(self) -> None:
        acts = [self.call, self.call, self.settle, self.settle, self.search, self.end_search]
        others = [self.pay, self.budget, self.look]
        await self.chance.choice(acts if self.chance.random() < 0.9 else others)()

    async def call(self) -> None:
        self.count += 1
        made = await self.accounts.reserve(
            self.chance.choice(self.keys),
            request_id=f"r{self.count:05}",
            model="m",
            price="kimi-k2.6",
            prompt_bound=self.chance.randrange(2000),
            max_tokens=self.chance.randrange(1, 2000),
            least_tokens=self.chance.choice([None, 1]),
        )
        self.open.append(made)

    async def settle(self) -> None:
        if self.open:
            made = self.open.pop(self.chance.randrange(len(self.open)))
            used = Usage(
                prompt_tokens=self.chance.randrange(3000), completion_tokens=self.chance.randrange(9)
            )
            await self.accounts.settle(made, used, outcome=self.chance.choice(["finished", "aborted"]))

    async def search(self) -> None:
        self.count += 1
        principal = self.chance.choice(self.keys)
        made = await self.accounts.reserve_search(principal, request_id=f"r{self.count:05}")
        self.searches.append(made)

    async def end_search(self) -> None:
        if self.searches:
            made = self.searches.pop()
            if self.chance.random() < 0.5:
                await self.accounts.release_search(made)
            else:
                await self.accounts.settle_search(made, found=self.chance.random() < 0.8)

    async def pay(self) -> None:
        self.count += 1
        kind = self.chance.choice(["deposit", "voucher"])
        amount = self.chance.randrange(1, DOLLAR // 20)
        self.accounts.wallets.enter(1, kind, amount, f"e{self.count}", actor="test")  # type: ignore[arg-type]

    async def budget(self) -> None:
        budget = self.chance.choice([None, self.chance.randrange(DOLLAR // 5)])
        self.accounts.set_key_budget(self.chance.choice(self.keys).key_id, budget)

    async def look(self) -> None:
        self.accounts.usage_rows()


@pytest.mark.parametrize("seed", range(6))
async def test_memory_is_what_the_books_say(accounts: Accounts, seed: int) -> None:
    caller, refused = Caller(accounts, random.Random(seed)), 0
    for step in range(300):
        try:
            await caller.act()
        except AccountError:
            refused += 1
        principal = caller.keys[step % 3]
        assert in_memory(accounts, principal) == anew(accounts, principal)
    assert caller.count > 50 and refused < 200
    assert accounts.verify() == ()
    assert all(in_memory(accounts, key) == anew(accounts, key) for key in caller.keys)


async def test_what_is_posted_while_it_is_read_counts_once(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    principal = accounts.local_principal()
    caller = Caller(accounts, random.Random(0))
    caller.keys = [principal]
    await caller.call()
    await caller.call()
    assert len(accounts.store.waiting()) == 2
    known = in_memory(accounts, principal)
    read = Store.read_posted

    def read_late(store: Store, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Others post between the look at what waits and this."""
        monkeypatch.undo()
        store.read("SELECT 1")
        return read(store, sql, params)

    monkeypatch.setattr(Store, "read_posted", read_late)
    assert anew(accounts, principal) == known
    assert accounts.store.waiting() == []


def test_an_end_is_never_longer_than_the_room_kept_for_it() -> None:
    most = (1 << 63) - 1
    entry = Settled("0" * 26, "finished", False, *[most] * 9, Payers(most, most, most))
    posting = CallPosting()
    assert len(posting.encode(entry)) + len("00000000 \n") <= LONGEST
    assert posting.decode(posting.encode(entry)) == entry
    with pytest.raises(msgspec.DecodeError):
        posting.decode(b'["pay",1]')


async def test_ids_that_are_no_longer_in_memory_are_looked_up(accounts: Accounts) -> None:
    principal = accounts.local_principal()
    for request_id in ("b", "d"):
        made = await accounts.reserve_search(principal, request_id=request_id)
        await accounts.settle_search(made, found=True)
    used = UsedIds(accounts.store)
    assert [used.has(one) for one in ("a", "b", "c", "d", "e")] == [False, True, False, True, False]
    for number in range(2 * LATEST + 10):
        used.add(f"e{number:05}")
    assert not used.has(f"e{2 * LATEST + 10:05}") and used.has(f"e{LATEST:05}")
    assert [used.has(one) for one in ("b", "c", "d", "e00000")] == [True, False, True, False]
    used.discard(f"e{LATEST:05}")
    assert not used.has(f"e{LATEST:05}")
    with pytest.raises(InputError, match="b was used before"):
        await accounts.reserve_search(principal, request_id="b")


async def test_a_call_that_is_settled_and_not_posted_is_settled(accounts: Accounts) -> None:
    caller = Caller(accounts, random.Random(0))
    await caller.call()
    made = caller.open[0]
    first = await accounts.settle(made, Usage(prompt_tokens=5))
    assert len(accounts.store.waiting()) == 2
    assert await accounts.settle(made, Usage(prompt_tokens=7)) == first
    assert await accounts.ledger.settle(made, Buckets(9)) == first
    assert accounts.verify() == ()
