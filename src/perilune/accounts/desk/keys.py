"""Acts on keys."""

from __future__ import annotations

import time

import msgspec

from perilune.accounts.accounts import Accounts
from perilune.accounts.desk.act import Act, Acts, Nothing
from perilune.accounts.keyring import KeyState
from perilune.errors import InputError


class NewKey(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    scopes: list[str] = msgspec.field(default_factory=lambda: ["chat"])
    project: int | None = None
    budget: int | None = None
    expires_ms: int | None = None


class OneKey(msgspec.Struct, forbid_unknown_fields=True):
    key: int


class KeyBudget(msgspec.Struct, forbid_unknown_fields=True):
    key: int
    budget: int | None


def create(accounts: Accounts, new: NewKey, actor: str) -> dict[str, str]:
    if new.expires_ms is not None and new.expires_ms <= time.time() * 1000:
        raise InputError("is over already", field="expires_ms", mend="choose a later time, or leave it out")
    secret = accounts.create_key(
        new.name,
        new.scopes,
        project_id=new.project,
        budget=new.budget,
        expires_ms=new.expires_ms,
        actor=actor,
    )
    return {"key": secret}


def list_keys(accounts: Accounts, _: Nothing, actor: str) -> list[KeyState]:
    return accounts.keyring.states()


def disable(accounts: Accounts, which: OneKey, actor: str) -> dict[str, int]:
    accounts.disable_key(which.key, actor=actor)
    return {"disabled": which.key}


def budget(accounts: Accounts, change: KeyBudget, actor: str) -> dict[str, int | None]:
    accounts.set_key_budget(change.key, change.budget, actor=actor)
    return {"key": change.key, "budget": change.budget}


ACTS: Acts = {
    "keys/list": Act(Nothing, list_keys, changes=False),
    "keys/create": Act(NewKey, create, changes=True),
    "keys/disable": Act(OneKey, disable, changes=True),
    "keys/budget": Act(KeyBudget, budget, changes=True),
}
