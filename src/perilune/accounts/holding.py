"""Setting aside what a call can cost, on the writer thread: in two accounts, in the wallet, and as a row.

What is refused undoes the whole write, so nothing is ever reserved in one place only.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from perilune.accounts.keys import Principal
from perilune.accounts.prices import TOKENS_PER_RATE, Price
from perilune.accounts.rows import Reservation
from perilune.accounts.wallet import AVAILABLE, Prepaid
from perilune.errors import ConfigError, InputError, InsufficientBalance, LimitReached

TAKE = """UPDATE account SET reserved = reserved + ?
    WHERE id = ? AND (budget IS NULL OR spent + reserved + ? <= budget)"""
TAKE_PREPAID = f"""UPDATE wallet SET reserved = reserved + ?
    WHERE organisation_id = ? AND deposited >= ? AND (? = 0 OR {AVAILABLE} >= ?)"""
PRICE = """SELECT id FROM price_version
    WHERE name = ? AND input = ? AND cached_input = ? AND output = ? AND search = ?"""
OPEN = f"""INSERT INTO request
        (id, key_id, project_id, price_id, model, reserved, uncached, opened_ms, prepaid)
    VALUES (?, ?, ?, ({PRICE}), ?, ?, ?, ?, ?)"""


class Pots(NamedTuple):
    """The accounts of a key and of its project."""

    key: int
    project: int


def take(connection: sqlite3.Connection, principal: Principal, pots: Pots, amount: int) -> None:
    """Reserve in both accounts. A refusal undoes the whole write."""
    for owner, pot in (("api_key", pots.key), ("project", pots.project)):
        if connection.execute(TAKE, (amount, pot, amount)).rowcount == 1:
            continue
        spent, budget = connection.execute(
            "SELECT spent, budget FROM account WHERE id = ?", (pot,)
        ).fetchone()
        passing = spent + amount <= budget
        held = " while others are under way" if passing else ""
        if owner == "api_key":
            raise LimitReached(
                f"the budget of the key {principal.key_name} does not cover this call{held}",
                passing=passing,
                mend="raise the key's budget, or ask for fewer tokens",
            )
        raise InsufficientBalance(
            f"the project's budget does not cover this call{held}",
            passing=passing,
            mend="raise the project's budget, or ask for fewer tokens",
        )


def room(connection: sqlite3.Connection, principal: Principal, pots: Pots, prepaid: bool) -> int | None:
    """Nano-USD that the budgets and the balance still cover; None is no limit."""
    rows = connection.execute(
        "SELECT budget - spent - reserved FROM account WHERE budget IS NOT NULL AND id IN (?, ?)", pots
    ).fetchall()
    if prepaid:
        rows += connection.execute(
            f"SELECT {AVAILABLE} FROM wallet WHERE organisation_id = ?", (principal.organisation_id,)
        ).fetchall()
    return min((int(row[0]) for row in rows), default=None)


def affordable(price: Price, prompt_bound: int, least: int, most: int, room: int | None) -> int:
    """As many answer tokens as `room` covers, within the two bounds."""
    if room is None or price.output == 0:
        return most
    left = room * TOKENS_PER_RATE - prompt_bound * max(price.input, price.cached_input)
    return max(least, min(most, left // price.output))


def take_prepaid(connection: sqlite3.Connection, principal: Principal, amount: int, prepaid: Prepaid) -> None:
    """Reserve in the organisation's wallet. A refusal undoes the whole write."""
    taken = connection.execute(
        TAKE_PREPAID,
        (amount, principal.organisation_id, prepaid.activation, amount, amount),
    )
    if taken.rowcount == 1:
        return
    deposited, available, reserved = connection.execute(
        f"SELECT deposited, {AVAILABLE}, reserved FROM wallet WHERE organisation_id = ?",
        (principal.organisation_id,),
    ).fetchone()
    if deposited < prepaid.activation:
        raise InsufficientBalance(
            f"Your account {principal.label} is suspended, please check your plan and billing details",
            mend=f"it is active once ${prepaid.activation / 1e9:.2f} have been deposited",
        )
    raise InsufficientBalance(
        f"You exceeded your current token quota: <org-{principal.organisation_id}> {available / 1e9:.5f}, "
        "please check your account balance",
        passing=available + reserved >= amount,
        mend="top up, or ask for fewer tokens",
    )


def open_row(
    connection: sqlite3.Connection, made: Reservation, model: str, prompt_estimate: int, now: int
) -> None:
    """Raises InputError for a request id that was used before."""
    price, principal = made.price, made.principal
    rates = (price.version, price.input, price.cached_input, price.output, price.search)
    row = (
        *(made.request_id, principal.key_id, principal.project_id),
        *rates,
        *(model, made.amount, prompt_estimate, now, int(made.prepaid)),
    )
    try:
        connection.execute(OPEN, row)
    except sqlite3.IntegrityError:
        if connection.execute("SELECT 1 FROM request WHERE id = ?", (made.request_id,)).fetchone():
            raise InputError(
                f"{made.request_id} was used before", field="request_id", mend="every call needs its own"
            ) from None
        _add_price(connection, price)
        connection.execute(OPEN, row)


def _add_price(connection: sqlite3.Connection, price: Price) -> None:
    """Enter a price version at its first use.

    Raises ConfigError when the book's version differs from what was billed under its name before."""
    if connection.execute("SELECT 1 FROM price_version WHERE name = ?", (price.version,)).fetchone():
        raise ConfigError(
            f"{price.version} was billed at other rates before",
            field="price_book",
            mend="prices are never edited: add an entry with a later `from`",
        )
    connection.execute(
        "INSERT INTO price_version (name, input, cached_input, output, search) VALUES (?, ?, ?, ?, ?)",
        (price.version, price.input, price.cached_input, price.output, price.search),
    )
