"""Acts on organisations, projects, balances and rate tiers."""

from __future__ import annotations

import msgspec

from perilune.accounts.accounts import Accounts
from perilune.accounts.desk.act import Act, Acts, Nothing
from perilune.accounts.keyring import check_budget
from perilune.accounts.request_ids import new_request_id
from perilune.accounts.wallet import Entry, Fee, Kind


class NewOrganisation(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class NewProject(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    organisation: int = 1
    budget: int | None = None


class ProjectBudget(msgspec.Struct, forbid_unknown_fields=True):
    project: int
    budget: int | None


class OwnTier(msgspec.Struct, forbid_unknown_fields=True):
    organisation: int
    tier: str | None


class NewEntry(msgspec.Struct, forbid_unknown_fields=True):
    kind: Kind
    amount: int
    """Nano-USD."""
    organisation: int = 1
    reference: str = ""
    """What makes the entry one of its kind; empty makes a new one each time."""
    note: str = ""
    to_voucher: bool = False


class SomeEntries(msgspec.Struct, forbid_unknown_fields=True):
    organisation: int = 1
    before: int | None = None
    limit: int = 100


class SomeFees(msgspec.Struct, forbid_unknown_fields=True):
    organisation: int = 1
    before: str = "~"
    limit: int = 100


def show(accounts: Accounts, _: Nothing, actor: str) -> dict[str, object]:
    organisations = [
        {**msgspec.to_builtins(one), "available": one.available, "limits": limits}
        for one in accounts.organisations.states()
        for limits in [msgspec.to_builtins(accounts.organisations.tier(one.id))]
    ]
    return {
        "prepaid": accounts.prepaid is not None,
        "activation": accounts.prepaid.activation if accounts.prepaid else 0,
        "organisations": organisations,
        "projects": accounts.organisations.projects(),
    }


def organisation(accounts: Accounts, new: NewOrganisation, actor: str) -> dict[str, int]:
    return {"organisation": accounts.organisations.create(new.name, actor=actor)}


def project(accounts: Accounts, new: NewProject, actor: str) -> dict[str, int]:
    check_budget(new.budget)
    made = accounts.organisations.create_project(new.organisation, new.name, new.budget, actor=actor)
    return {"project": made}


def budget(accounts: Accounts, change: ProjectBudget, actor: str) -> dict[str, int | None]:
    check_budget(change.budget)
    accounts.organisations.set_project_budget(change.project, change.budget, actor=actor)
    return {"project": change.project, "budget": change.budget}


def tier(accounts: Accounts, change: OwnTier, actor: str) -> dict[str, str | int]:
    accounts.organisations.set_tier(change.organisation, change.tier, actor=actor)
    return {
        "organisation": change.organisation,
        "tier": accounts.organisations.tier(change.organisation).name,
    }


def enter(accounts: Accounts, new: NewEntry, actor: str) -> dict[str, object]:
    entry, is_new = accounts.wallets.enter(
        new.organisation,
        new.kind,
        new.amount,
        new.reference or new_request_id(),
        note=new.note,
        to_voucher=new.to_voucher,
        actor=actor,
    )
    accounts.organisations.load()  # a deposit may reach another tier
    return {
        "new": is_new,
        "entry": entry,
        "available": accounts.organisations.state(new.organisation).available,
    }


def entries(accounts: Accounts, which: SomeEntries, actor: str) -> list[Entry]:
    return accounts.wallets.entries(which.organisation, which.before, min(max(which.limit, 1), 1000))


def fees(accounts: Accounts, which: SomeFees, actor: str) -> list[Fee]:
    return accounts.wallets.fees(which.organisation, which.before, min(max(which.limit, 1), 1000))


ACTS: Acts = {
    "account/show": Act(Nothing, show, changes=False),
    "account/organisation": Act(NewOrganisation, organisation, changes=True),
    "account/project": Act(NewProject, project, changes=True),
    "account/budget": Act(ProjectBudget, budget, changes=True),
    "account/tier": Act(OwnTier, tier, changes=True),
    "account/enter": Act(NewEntry, enter, changes=True),
    "account/entries": Act(SomeEntries, entries, changes=False),
    "account/fees": Act(SomeFees, fees, changes=False),
}
