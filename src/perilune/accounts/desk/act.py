"""An operator's act: a name, the fields it takes, and what it does. One table serves the command line, which
calls it in its own process or over the admin door, and the door itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import msgspec.inspect

from perilune.accounts.accounts import Accounts
from perilune.errors import ConfigError, HomeLocked, InputError


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """An act that takes no fields."""


@dataclass(frozen=True)
class Act:
    fields: type[msgspec.Struct]
    run: Callable[[Accounts, Any, str], object]
    """(accounts, the fields, who acts) -> something that is JSON."""
    changes: bool
    """Whether it writes; the others also work beside a process that owns HOME."""


Acts = Mapping[str, Act]


def perform(acts: Acts, name: str, body: bytes, accounts: Accounts, actor: str) -> object:
    """Decode the fields and act. Raises InputError naming the field, and what the act raises."""
    act = acts[name]
    try:
        fields = msgspec.json.decode(body or b"{}", type=act.fields)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        field = path.removesuffix("`").removeprefix(".")
        mend = _mend(act.fields, field)
        raise InputError(text[:1].lower() + text[1:], field=field or None, mend=mend) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the body is not valid JSON: {error}", mend="send one JSON object") from error
    try:
        return act.run(accounts, fields, actor)
    except OverflowError as error:
        raise InputError("a number is larger than the books can hold", mend="check it") from error
    except ConfigError as error:
        if isinstance(error, HomeLocked):
            raise
        # Here the fields come from a caller, not from a file of the operator.
        raise InputError(error.message, field=error.field, mend=error.mend) from error


def _mend(fields: type[msgspec.Struct], wrong: str) -> str:
    """The words that a field takes, where they are few; else the fields that there are."""
    info = msgspec.inspect.type_info(fields)
    assert isinstance(info, msgspec.inspect.StructType), "fields are a struct"
    for field in info.fields:
        if field.encode_name == wrong and isinstance(field.type, msgspec.inspect.LiteralType):
            return f"use {', '.join(map(str, field.type.values))}"
    names = ", ".join(field.encode_name for field in info.fields)
    return f"its fields are {names}" if names else "it takes no fields"
