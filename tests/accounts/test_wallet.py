"""Prepaid balances: entries made once, vouchers before cash, official words, never overdrawn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from perilune.accounts.accounts import Accounts
from perilune.accounts.keys import Principal
from perilune.accounts.request_ids import new_request_id
from perilune.accounts.rows import Reservation
from perilune.accounts.wallet import Kind
from perilune.chat.messages import Usage
from perilune.errors import InputError, InsufficientBalance, LimitReached, NotFound
from perilune.settings import Settings

USD = 1_000_000_000
BOUND = 100 * 950 + 10 * 4000
"""Of 100 prompt and 10 output tokens."""
FULL = Usage(prompt_tokens=100, completion_tokens=10)


def opened(home: Path, **values: object) -> Accounts:
    return Accounts.open(home, Settings.load(home, {"prepaid": True, "activation_usd": 0} | values, {}))


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    with opened(tmp_path) as accounts:
        yield accounts
        assert accounts.verify() == ()


def enter(accounts: Accounts, amount: int, kind: Kind = "deposit", reference: str = "", **more: bool) -> bool:
    reference = reference or new_request_id()
    return accounts.wallets.enter(1, kind, amount, reference, actor="test", **more)[1]


def held(accounts: Accounts) -> tuple[int, int, int, int]:
    state = accounts.organisations.state(1)
    return state.cash, state.voucher, state.reserved, state.available


async def reserve(
    accounts: Accounts, principal: Principal | None = None, least: int | None = None, most: int = 10
) -> Reservation:
    return await accounts.reserve(
        principal or accounts.local_principal(),
        request_id=new_request_id(),
        model="m",
        price="kimi-k2.6",
        prompt_bound=100,
        max_tokens=most,
        least_tokens=least,
    )


def test_an_entry_is_made_once(accounts: Accounts) -> None:
    assert enter(accounts, 5 * USD, reference="invoice 1")
    assert not enter(accounts, 5 * USD, reference="invoice 1")
    assert held(accounts) == (5 * USD, 0, 0, 5 * USD)
    for amount, kind in ((6 * USD, "deposit"), (5 * USD, "voucher")):
        with pytest.raises(InputError, match=r"reference: 'invoice 1' was entered before as another deposit"):
            enter(accounts, amount, kind, "invoice 1")  # type: ignore[arg-type]
    (entry,) = accounts.wallets.entries(1)
    assert (entry.kind, entry.cash, entry.voucher, entry.actor) == ("deposit", 5 * USD, 0, "test")


@pytest.mark.parametrize(
    ("amount", "kind", "field"),
    [
        (0, "deposit", "amount"),
        (-1, "deposit", "amount"),
        (-1, "voucher", "amount"),
        (1 << 61, "deposit", "amount"),
    ],
)
def test_a_wrong_amount_is_refused(accounts: Accounts, amount: int, kind: Kind, field: str) -> None:
    with pytest.raises(InputError) as caught:
        enter(accounts, amount, kind)
    assert caught.value.field == field
    assert accounts.wallets.entries(1) == []


def test_other_wrong_entries_are_refused(accounts: Accounts) -> None:
    with pytest.raises(InputError, match="reference"):
        accounts.wallets.enter(1, "deposit", 1, " ", actor="test")
    with pytest.raises(NotFound, match="no organisation 9"):
        accounts.wallets.enter(9, "deposit", 1, "r", actor="test")
    with pytest.raises(InputError, match="balance would leave its bounds"):
        enter(accounts, -1, "correction", to_voucher=True)
    enter(accounts, -3, "correction")
    assert held(accounts) == (-3, 0, 0, 0)


async def test_vouchers_are_spent_before_cash(accounts: Accounts) -> None:
    enter(accounts, USD)
    enter(accounts, BOUND + 7, "voucher")
    for _ in range(2):
        await accounts.settle(await reserve(accounts), FULL)
    assert held(accounts) == (USD - BOUND + 7, 0, 0, USD - BOUND + 7)
    assert accounts.verify() == ()


async def test_two_hundred_at_once_on_a_balance_for_ten(accounts: Accounts) -> None:
    enter(accounts, 4 * BOUND)
    enter(accounts, 6 * BOUND, "voucher")
    results = await asyncio.gather(*(reserve(accounts) for _ in range(200)), return_exceptions=True)
    admitted = [one for one in results if isinstance(one, Reservation)]
    assert len(admitted) == 10
    assert {type(one) for one in results} == {Reservation, InsufficientBalance}
    assert all(one.passing for one in results if isinstance(one, InsufficientBalance))
    assert held(accounts) == (4 * BOUND, 6 * BOUND, 10 * BOUND, 0)
    assert accounts.verify() == ()
    for reservation in admitted:
        await accounts.settle(reservation, FULL)
    assert held(accounts) == (0, 0, 0, 0)


async def test_refused_in_the_official_words(accounts: Accounts) -> None:
    with pytest.raises(
        InsufficientBalance, match=r"exceeded your current token quota: <org-1> 0\.00000, please"
    ) as caught:
        await reserve(accounts)
    assert not caught.value.passing  # nobody gives back what is missing
    enter(accounts, BOUND + 5)
    held_by = await reserve(accounts)
    with pytest.raises(InsufficientBalance, match=r"<org-1> 0\.00000, please") as caught:
        await reserve(accounts)
    assert caught.value.passing
    await accounts.settle(held_by, Usage(prompt_tokens=100, completion_tokens=9))
    with pytest.raises(InsufficientBalance) as caught:
        await reserve(accounts)
    assert not caught.value.passing
    assert [row.outcome for row in accounts.usage_rows()] == ["finished"]
    assert accounts.limits.running == 0


async def test_what_is_free_needs_no_balance(accounts: Accounts) -> None:
    """Not even where a call came to more than it had reserved, and others hold what is left."""
    enter(accounts, 2 * BOUND)
    first, _ = await reserve(accounts), await reserve(accounts)
    await accounts.settle(first, Usage(prompt_tokens=200, completion_tokens=20))
    assert held(accounts)[3] == -BOUND
    free = await accounts.reserve(
        accounts.local_principal(),
        request_id=new_request_id(),
        model="m",
        price="free",
        prompt_bound=100,
        max_tokens=10,
    )
    assert free.amount == 0


async def test_an_account_is_active_once_it_has_a_deposit(tmp_path: Path) -> None:
    with opened(tmp_path, activation_usd=1) as accounts:
        enter(accounts, 50 * USD, "voucher")
        with pytest.raises(InsufficientBalance, match=r"Your account org-1<ak-2> is suspended.*\$1.00"):
            await reserve(accounts)
        enter(accounts, USD - 1)
        with pytest.raises(InsufficientBalance, match="suspended"):
            await reserve(accounts)
        enter(accounts, 1)
        await accounts.settle(await reserve(accounts), FULL)
        assert accounts.verify() == ()


async def test_a_new_home_needs_no_deposit(tmp_path: Path) -> None:
    with Accounts.open(tmp_path, Settings(home=tmp_path)) as accounts:
        await accounts.settle(await reserve(accounts), FULL)
        assert held(accounts) == (0, 0, 0, 0)
    with opened(tmp_path) as accounts:  # prepaid from now on: what was used before is not owed
        with pytest.raises(InsufficientBalance):
            await reserve(accounts)
        assert accounts.verify() == ()


async def test_calls_are_settled_by_the_rule_they_began_under(tmp_path: Path) -> None:
    accounts = opened(tmp_path)
    enter(accounts, USD)
    await reserve(accounts)
    accounts.close()
    with Accounts.open(tmp_path, Settings(home=tmp_path)) as accounts:  # the orphan is paid from the wallet
        assert held(accounts) == (USD - 100 * 950, 0, 0, USD - 100 * 950)
        assert accounts.verify() == ()


async def test_an_open_length_is_cut_to_what_is_covered(accounts: Accounts) -> None:
    enter(accounts, 100 * 950 + 300 * 4000 + 3999)
    reservation = await reserve(accounts, least=256, most=32_768)
    assert (reservation.max_tokens, reservation.amount) == (300, 100 * 950 + 300 * 4000)
    with pytest.raises(InsufficientBalance, match="exceeded your current token quota"):
        await reserve(accounts, least=256, most=32_768)
    await accounts.settle(reservation, Usage(), outcome="failed")
    with pytest.raises(InsufficientBalance):  # a length that was asked for is never cut
        await reserve(accounts, most=301)
    enter(accounts, USD)
    assert (await reserve(accounts, least=256, most=1000)).max_tokens == 1000


async def test_what_was_cut_is_not_taken_from_the_rate_limits(tmp_path: Path) -> None:
    with opened(tmp_path, tier="kimi-0") as accounts:
        enter(accounts, 100 * 950 + 300 * 4000)
        made = await accounts.reserve(
            accounts.local_principal(),
            request_id=new_request_id(),
            model="m",
            price="kimi-k2.6",
            prompt_bound=100,
            prompt_estimate=30,
            max_tokens=32_768,
            least_tokens=256,
        )
        assert made.max_tokens == 300
        standing = accounts.limits.standing(1)
        assert (standing.running, standing.requests) == (1, 1)
        assert (standing.tokens, standing.day_tokens) == (30 + 300, 30 + 300)  # as good as is known


async def test_the_tightest_of_key_project_and_balance_cuts(accounts: Accounts) -> None:
    enter(accounts, USD)
    secret = accounts.create_key("small", budget=100 * 950 + 400 * 4000)
    key = accounts.authenticate(secret, "chat")
    assert (await reserve(accounts, key, 256, 32_768)).max_tokens == 400
    with pytest.raises(LimitReached, match="budget of the key small"):
        await reserve(accounts, key, 256, 32_768)
    accounts.set_key_budget(key.key_id, None)
    accounts.organisations.set_project_budget(1, 2 * 100 * 950 + 900 * 4000, actor="test")
    assert (await reserve(accounts, key, 256, 32_768)).max_tokens == 500


async def test_an_organisation_pays_for_its_own_keys_only(accounts: Accounts) -> None:
    number = accounts.organisations.create("other", actor="test")
    project = next(one for one in accounts.organisations.projects() if one.organisation_id == number)
    other = accounts.authenticate(accounts.create_key("o", project_id=project.id), "chat")
    enter(accounts, USD)
    with pytest.raises(InsufficientBalance, match=f"<org-{number}>"):
        await reserve(accounts, other)
    accounts.wallets.enter(number, "deposit", BOUND, "r", actor="test")
    await accounts.settle(await reserve(accounts, other), FULL)
    assert accounts.organisations.state(number).available == 0
    assert held(accounts)[0] == USD


async def test_the_tier_follows_deposits_and_operators(tmp_path: Path) -> None:
    with opened(tmp_path, tier="kimi", activation_usd=0) as accounts:
        assert accounts.organisations.tier(1).name == "kimi-0"
        enter(accounts, 10 * USD)
        accounts.organisations.load()
        assert accounts.organisations.tier(1).name == "kimi-1"
        accounts.organisations.set_tier(1, "kimi-0", actor="test")
        first = await reserve(accounts)
        with pytest.raises(LimitReached, match="org-1<ak-2> request reached organization max concurrency: 1"):
            await reserve(accounts)
        await accounts.settle(first, FULL)
        for _ in range(2):
            await accounts.settle(await reserve(accounts), FULL)
        with pytest.raises(LimitReached, match="max RPM: 3"):
            await reserve(accounts)
        accounts.organisations.set_tier(1, None, actor="test")
        assert accounts.organisations.tier(1).name == "kimi-1"


def test_a_tier_that_left_the_book_gives_way_to_the_usual_one(tmp_path: Path) -> None:
    own = tmp_path / "tiers.toml"
    own.write_text('[[tier]]\nname = "a"\nconcurrency = 1\nrpm = 2\ntpm = 3\ntpd = 4\n')
    with opened(tmp_path / "home", tier="kimi-1") as accounts:
        accounts.organisations.set_tier(1, "kimi-2", actor="test")
    with opened(tmp_path / "home", tier="a", tier_book=str(own)) as accounts:
        assert accounts.organisations.tier(1).name == "a"
    with opened(tmp_path / "home", tier="kimi-1") as accounts:  # and is back with the book
        assert accounts.organisations.tier(1).name == "kimi-2"


async def test_a_call_that_money_refuses_takes_no_place_in_the_limits(tmp_path: Path) -> None:
    with opened(tmp_path, tier="kimi-0") as accounts:
        for _ in range(10):
            with pytest.raises(InsufficientBalance):
                await reserve(accounts)
        enter(accounts, USD)
        await reserve(accounts)
