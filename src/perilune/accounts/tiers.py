"""Rate tiers: how much an organisation may ask for at once, a minute and a day. Data, from a TOML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from perilune.accounts.toml_books import entries_of, read_book
from perilune.errors import ConfigError
from perilune.settings import Settings

NANO_PER_USD = 1_000_000_000
LIMITS = ("concurrency", "rpm", "tpm", "tpd")


@dataclass(frozen=True)
class Tier:
    """Limits of one organisation; 0 is none."""

    name: str
    concurrency: int = 0
    """Calls under way at one time."""
    rpm: int = 0
    """Calls begun in any 60 seconds."""
    tpm: int = 0
    """Tokens asked for in any 60 seconds: prompts, and the most that the answers may have."""
    tpd: int = 0
    """The same in any 24 hours."""
    ladder: str = ""
    deposit: int = 0
    """Nano-USD that must have been deposited to reach this tier of its ladder."""


class TierBook:
    """All tiers, by name and by ladder."""

    def __init__(self, tiers: Iterable[Tier]) -> None:
        """Raises ConfigError when a name occurs twice."""
        self._tiers: dict[str, Tier] = {}
        self._ladders: dict[str, list[Tier]] = {}
        for tier in sorted(tiers, key=lambda one: one.deposit):
            if tier.name in self._tiers:
                raise _wrong("tiers", f"{tier.name} occurs twice")
            self._tiers[tier.name] = tier
            if tier.ladder:
                self._ladders.setdefault(tier.ladder, []).append(tier)
        if both := self._tiers.keys() & self._ladders.keys():
            raise _wrong("tiers", f"{sorted(both)[0]} is a tier and a ladder")

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """The tiers that the setting `tier_book` names, else the bundled ones; the setting `tier` must be
        one of them. Raises ConfigError naming the file and the entry."""
        book = cls(parse_tiers(*read_book(settings.tier_book, "tiers.toml", "tier_book")))
        book.check(settings.tier)
        return book

    @property
    def names(self) -> tuple[str, ...]:
        """Of tiers and of ladders."""
        return (*self._tiers, *self._ladders)

    def check(self, name: str) -> str:
        """The name of a tier or a ladder. Raises ConfigError for another."""
        if name not in self._tiers and name not in self._ladders:
            raise ConfigError(
                f"no rate tier {name!r}", field="tier", mend=f"there are {', '.join(self.names)}"
            )
        return name

    def tier(self, name: str, deposited: int = 0) -> Tier:
        """The tier of that name, or the highest of that ladder which the deposits have reached; its lowest
        where they have reached none. Raises ConfigError for an unknown name."""
        ladder = self._ladders.get(self.check(name))
        if ladder is None:
            return self._tiers[name]
        return next((tier for tier in reversed(ladder) if tier.deposit <= deposited), ladder[0])


def parse_tiers(text: str, source: str) -> tuple[Tier, ...]:
    """The entries of a tier file. Raises ConfigError naming what is wrong where."""
    return tuple(_tier(entry, where) for entry, where in entries_of(text, "tier", source, _wrong))


def _tier(entry: Mapping[str, Any], where: str) -> Tier:
    needed = {"name", *LIMITS}
    if not isinstance(entry, dict) or not needed <= set(entry) <= needed | {"ladder", "deposit"}:
        raise _wrong(where, f"expected {', '.join(sorted(needed))}, and perhaps ladder and deposit")
    for name in ("name", "ladder"):
        if not isinstance(entry.get(name, "x"), str) or not entry.get(name, "x"):
            raise _wrong(where, f"{name} must be text")
    for name in (*LIMITS, "deposit"):
        value = entry.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise _wrong(where, f"{name} must be a whole number, zero or more")
    limits = {name: entry[name] for name in LIMITS}
    return Tier(
        entry["name"],
        ladder=entry.get("ladder", ""),
        deposit=entry.get("deposit", 0) * NANO_PER_USD,
        **limits,
    )


def _wrong(where: str, message: str) -> ConfigError:
    return ConfigError(f"{where}: {message}", field="tier_book", mend="correct it there")
