"""What keys, projects and organisations have left, held in memory: calls are let in without asking the disk.

Memory is the tables and what waits in the day book, added up. It is read again whenever something else than
a call has written, such as a deposit or a new budget.
"""

from __future__ import annotations

from collections.abc import Iterable

from perilune.accounts.entries import Entry, Moves, Payers
from perilune.accounts.keys import Principal
from perilune.accounts.prices import TOKENS_PER_RATE, Price
from perilune.accounts.wallet import Prepaid
from perilune.errors import InsufficientBalance, LimitReached, StoreError
from perilune.store import Store

LOAD = """SELECT d.file, d.byte, k.account_id, a.budget, a.spent, a.reserved,
        p.account_id, b.budget, b.spent, b.reserved, w.cash, w.voucher, w.reserved, w.deposited
    FROM daybook d, api_key k JOIN project p ON p.id = k.project_id
    JOIN account a ON a.id = k.account_id JOIN account b ON b.id = p.account_id
    JOIN wallet w ON w.organisation_id = p.organisation_id WHERE k.id = ?"""


class Account:
    """A pot of money with an optional budget."""

    __slots__ = ("budget", "number", "reserved", "spent")

    def __init__(self, number: int, budget: int | None, spent: int, reserved: int) -> None:
        self.number = number
        self.budget = budget
        self.spent = spent
        self.reserved = reserved

    @property
    def left(self) -> int | None:
        """None is no limit."""
        return None if self.budget is None else self.budget - self.spent - self.reserved


class Wallet:
    """What an organisation has paid in and was granted, and not spent."""

    __slots__ = ("cash", "deposited", "number", "reserved", "voucher")

    def __init__(self, number: int, cash: int, voucher: int, reserved: int, deposited: int) -> None:
        self.number = number
        self.cash = cash
        self.voucher = voucher
        self.reserved = reserved
        self.deposited = deposited

    @property
    def left(self) -> int:
        return self.voucher + max(self.cash, 0) - self.reserved


class Purse:
    """All that a key's calls are paid from."""

    __slots__ = ("_accounts", "_prepaid", "_unpaid", "key", "project", "wallet")

    def __init__(self, key: Account, project: Account, wallet: Wallet) -> None:
        self.key = key
        self.project = project
        self.wallet = wallet
        self._accounts = (key, project)
        self._prepaid = Payers(key.number, project.number, wallet.number)
        self._unpaid = Payers(key.number, project.number, 0)

    def payers(self, prepaid: bool) -> Payers:
        return self._prepaid if prepaid else self._unpaid

    def move(self, entry: Entry) -> None:
        """What was just entered for one of its calls."""
        _add(entry.moves, self._accounts, self.wallet if entry.payers.wallet else None)

    def affordable(self, price: Price, prompt_bound: int, least: int, most: int, prepaid: bool) -> int:
        """As many answer tokens as is left for, within the two bounds."""
        lefts = [self.key.left, self.project.left, self.wallet.left if prepaid else None]
        room = min((left for left in lefts if left is not None), default=None)
        if room is None or price.output == 0:
            return most
        rest = room * TOKENS_PER_RATE - prompt_bound * max(price.input, price.cached_input)
        return max(least, min(most, rest // price.output))

    def refuse_beyond(self, principal: Principal, amount: int, prepaid: Prepaid | None) -> None:
        """Raises LimitReached (key budget), InsufficientBalance (project budget, balance)."""
        if self.key.budget is not None and self.key.spent + self.key.reserved + amount > self.key.budget:
            passing = self.key.spent + amount <= self.key.budget
            raise LimitReached(
                f"the budget of the key {principal.key_name} does not cover this call{_held(passing)}",
                passing=passing,
                mend="raise the key's budget, or ask for fewer tokens",
            )
        project = self.project
        if project.budget is not None and project.spent + project.reserved + amount > project.budget:
            passing = project.spent + amount <= project.budget
            raise InsufficientBalance(
                f"the project's budget does not cover this call{_held(passing)}",
                passing=passing,
                mend="raise the project's budget, or ask for fewer tokens",
            )
        if prepaid is not None:
            if self.wallet.deposited < prepaid.activation:
                raise _suspended(principal, prepaid)
            if amount > 0 and self.wallet.left < amount:
                raise _exceeded(self.wallet, amount)


def _held(passing: bool) -> str:
    return " while others are under way" if passing else ""


def _suspended(principal: Principal, prepaid: Prepaid) -> InsufficientBalance:
    return InsufficientBalance(
        f"Your account {principal.label} is suspended, please check your plan and billing details",
        mend=f"it is active once ${prepaid.activation / 1e9:.2f} have been deposited",
    )


def _exceeded(wallet: Wallet, amount: int) -> InsufficientBalance:
    return InsufficientBalance(
        f"You exceeded your current token quota: <org-{wallet.number}> {wallet.left / 1e9:.5f}, "
        "please check your account balance",
        passing=wallet.left + wallet.reserved >= amount,
        mend="top up, or ask for fewer tokens",
    )


class Purses:
    """For who holds the lock of the ledger."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changes = -1
        self._of_key: dict[int, Purse] = {}
        self._accounts: dict[int, Account] = {}
        self._wallets: dict[int, Wallet] = {}

    def of(self, principal: Principal) -> Purse:
        """Raises StoreError where it cannot be read."""
        if self._changes != self._store.changes:
            self._changes = self._store.changes
            self._of_key.clear()
            self._accounts.clear()
            self._wallets.clear()
        purse = self._of_key.get(principal.key_id)
        if purse is None:
            purse = self._of_key[principal.key_id] = self._load(principal)
        return purse

    def _load(self, principal: Principal) -> Purse:
        waiting = self._store.waiting()  # first: what is posted meanwhile is then in both, and is told apart
        rows = self._store.read_posted(LOAD, (principal.key_id,))
        if not rows:
            raise StoreError(
                f"the books have no key {principal.key_id}", mend="restore accounts.db from a backup"
            )
        file, byte, *numbers = rows[0]
        accounts: dict[int, Account] = {}
        wallets: dict[int, Wallet] = {}
        for account in (Account(*numbers[:4]), Account(*numbers[4:8])):
            if account.number not in self._accounts:
                accounts[account.number] = account
        number = principal.organisation_id
        if number not in self._wallets:
            wallets[number] = Wallet(number, *numbers[8:])
        for mark, entry in waiting:
            if mark > (file, byte):
                payers = entry.payers
                held = [accounts[one] for one in (payers.key, payers.project) if one in accounts]
                _add(entry.moves, held, wallets.get(payers.wallet))
        self._accounts |= accounts
        self._wallets |= wallets
        key, project = numbers[0], numbers[4]
        return Purse(self._accounts[key], self._accounts[project], self._wallets[number])


def _add(moves: Moves, accounts: Iterable[Account], wallet: Wallet | None) -> None:
    spent, reserved, granted = moves
    for account in accounts:
        account.spent += spent
        account.reserved += reserved
    if wallet is not None:
        wallet.cash -= spent - granted
        wallet.voucher -= granted
        wallet.reserved += reserved
