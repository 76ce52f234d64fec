"""Where operators' commands act: in their own process, at a running server's admin door, or read-only."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from perilune.errors import (
    ConfigError,
    Forbidden,
    HomeLocked,
    InputError,
    InvalidKey,
    NotFound,
    PeriluneError,
)

if TYPE_CHECKING:
    from perilune.accounts.accounts import Accounts
    from perilune.settings import Settings

Desk = Callable[..., Any]
"""`desk("keys/create", name="ci")`: performs an act of accounts/desk and returns what it answers, as JSON."""
TIMEOUT_S = 120.0
PAGE = 1000
"""What the desk gives at most at one time."""


@contextmanager
def open_desk(settings: Settings, *, as_found: bool = False, must_exist: bool = False) -> Iterator[Desk]:
    """If nobody owns HOME, own it; if a server does, speak to its admin door, and without one only read.
    With `as_found`, calls that a dead process left open stay so; with `must_exist` no HOME is made.

    Raises HomeLocked for a change that nobody can make now, ConfigError, StoreError."""
    from perilune.accounts.accounts import DATABASE, Accounts
    from perilune.store import HomeLock, home_holder

    if must_exist and not (settings.home / DATABASE).exists():
        raise ConfigError(
            f"there are no accounts in {settings.home}", field="home", mend="say where with --home"
        )
    holder = home_holder(settings.home)
    if holder is None:
        with (
            HomeLock(settings.home, "accounts"),
            Accounts.open(settings.home, settings, close_orphans=not as_found) as accounts,
        ):
            yield _local(accounts)
    elif holder.admin:
        yield _remote(holder.admin, _admin_key(settings))
    else:
        with Accounts.peek(settings.home, settings) as accounts:
            yield _local(accounts)


@contextmanager
def open_door(settings: Settings) -> Iterator[Desk]:
    """The admin door of the server that owns HOME: for acts on what lives in its process.

    Raises HomeLocked, ConfigError where there is none."""
    from perilune.store import home_holder

    holder = home_holder(settings.home)
    if holder is None or not holder.address:
        raise ConfigError(
            f"no server owns {settings.home}",
            field="home",
            mend="start one: perilune serve --admin-port PORT",
        )
    if not holder.admin:
        raise HomeLocked(
            "a running Perilune owns this HOME, and its admin door is closed",
            field="home",
            mend="start it with --admin-port",
        )
    yield _remote(holder.admin, _admin_key(settings))


def _local(accounts: Accounts) -> Desk:
    import msgspec

    from perilune.accounts.accounts import COMMAND_LINE
    from perilune.accounts.desk.act import perform
    from perilune.accounts.desk.acts import ACTS

    def act(name: str, /, **fields: object) -> Any:
        result = perform(ACTS, name, _body(fields), accounts, COMMAND_LINE)
        return msgspec.to_builtins(result)

    return act


def _remote(url: str, key: str) -> Desk:
    place = urlsplit(url)

    def act(name: str, /, **fields: object) -> Any:
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=TIMEOUT_S)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        try:
            connection.request("POST", f"{place.path}/{name}", _body(fields), headers)
            answer = connection.getresponse()
            status, body = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(
                f"the admin door at {url} does not answer: {error}", mend="is the server running?"
            ) from error
        finally:
            connection.close()
        if status != 200:
            raise _refusal(status, body)
        return json.loads(body)

    return act


def _body(fields: dict[str, object]) -> bytes:
    """Raises InputError for an argument that is no text, such as bytes in another encoding."""
    for name, value in fields.items():
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise InputError("is not text in UTF-8", field=name, mend="write it anew") from error
    return json.dumps(fields, default=str).encode()


def _refusal(status: int, body: bytes) -> PeriluneError:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the admin door answered {status}"
    kinds: dict[int, type[PeriluneError]] = {400: InputError, 401: InvalidKey, 403: Forbidden, 404: NotFound}
    return kinds.get(status, PeriluneError)(message)


def _admin_key(settings: Settings) -> str:
    """From HOME/keys.json, else the setting `api_key`."""
    try:
        found = json.loads((settings.home / "keys.json").read_text(encoding="utf-8"))
        return str(found["admin_key"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if settings.api_key:
            return settings.api_key
        raise ConfigError(
            "no admin key: keys.json is not in HOME", field="api_key", mend="set PERILUNE_API_KEY to one"
        ) from error


def pages(desk: Desk, name: str, key: str, **fields: object) -> Iterator[list[Any]]:
    """All of a list that the desk gives a page at a time: it may be larger than memory. `key` is the field
    by which it goes on."""
    after: dict[str, object] = {}
    while True:
        page = desk(name, limit=PAGE, **fields, **after)
        yield page
        if len(page) < PAGE:
            return
        after = {"before": page[-1][key]}


def money(nano: int | None) -> str:
    """USD, exactly: `1.50`, `0.000026`; `-` for no limit."""
    if nano is None:
        return "-"
    sign, size = ("-", -nano) if nano < 0 else ("", nano)
    fraction = f"{size % 1_000_000_000:09}".rstrip("0").ljust(2, "0")
    return f"{sign}{size // 1_000_000_000}.{fraction}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
