"""Which endpoint may serve whom: rules as data (`[[access]]`), checked before anything is sent.

A rule concerns the keys, projects and organisations it names, or everybody where it names none. Every rule
that concerns a caller must allow the endpoint. What an endpoint does not say of itself it does not have: one
without a region is in none of the regions that a rule names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from perilune.accounts.keys import Principal


class Declared(Protocol):
    """What an endpoint says of itself."""

    @property
    def region(self) -> str: ...
    @property
    def vendor(self) -> str: ...
    @property
    def data_classes(self) -> tuple[str, ...]: ...


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[access]]` table."""

    keys: tuple[int, ...] = ()
    projects: tuple[int, ...] = ()
    organisations: tuple[int, ...] = ()
    regions: tuple[str, ...] = ()
    vendors: tuple[str, ...] = ()
    data_class: str = ""

    def concerns(self, principal: Principal) -> bool:
        if not (self.keys or self.projects or self.organisations):
            return True
        return (
            principal.key_id in self.keys
            or principal.project_id in self.projects
            or principal.organisation_id in self.organisations
        )

    def allows(self, endpoint: Declared) -> bool:
        return (
            (not self.regions or endpoint.region in self.regions)
            and (not self.vendors or endpoint.vendor in self.vendors)
            and (not self.data_class or self.data_class in endpoint.data_classes)
        )


def may_serve(rules: Iterable[Rule], principal: Principal, endpoint: Declared) -> bool:
    return all(rule.allows(endpoint) for rule in rules if rule.concerns(principal))
