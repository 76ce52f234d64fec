"""What operators see of the backends that serve, and the one thing they tell them: take no new calls."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

STATES = ("closed", "half open", "open", "drained")


@dataclass
class Duty:
    """How one backend stands, while it serves."""

    running: int = 0
    """Calls under way."""
    drained: bool = False
    """An operator wants it to take no new ones."""
    error: str = ""
    """Its last failure; empty since it last answered."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One backend as operators see it."""

    name: str
    """As its `[[backends]]` table says; the kind, where there is only one backend."""
    model: str
    """The name under which it serves here."""
    kind: str
    """`embedded`, `upstream`, ..."""
    breaker: str = "closed"
    """`closed`, `half open` or `open`."""
    drained: bool = False
    running: int | None = None
    """Calls under way; None where nobody counts them."""
    error: str = ""
    """Its last failure; empty since it last answered."""
    region: str = ""
    vendor: str = ""
    data_classes: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """In one word: whether calls go there."""
        return "drained" if self.drained else self.breaker
