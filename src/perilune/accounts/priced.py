"""The versions of prices at which something was billed, as the books know them."""

from __future__ import annotations

import sqlite3

from perilune.accounts.prices import Price
from perilune.errors import ConfigError

KNOWN = "SELECT id, input, cached_input, output, search FROM price_version WHERE name = ?"


def enter_price(connection: sqlite3.Connection, price: Price) -> int:
    """The number of a price version, which is entered at its first use.

    Raises ConfigError when the book's version differs from what was billed under its name before."""
    rates = (price.input, price.cached_input, price.output, price.search)
    row = connection.execute(KNOWN, (price.version,)).fetchone()
    if row is None:
        connection.execute(
            "INSERT INTO price_version (name, input, cached_input, output, search) VALUES (?, ?, ?, ?, ?)",
            (price.version, *rates),
        )
        row = connection.execute(KNOWN, (price.version,)).fetchone()
    number, *known = row
    if tuple(known) != rates:
        raise ConfigError(
            f"{price.version} was billed at other rates before",
            field="price_book",
            mend="prices are never edited: add an entry with a later `from`",
        )
    return int(number)
