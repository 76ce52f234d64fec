"""What differs between the chat formats of the K2 family, as data: one renderer serves them all.

A checkpoint's own `chat_template.jinja` says which of these is its (`chat/oracle.py`); where it brings none,
the model's entry or the setting `template` names one, and otherwise it is K2.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Variant:
    name: str
    default_system: bool = False
    """Kimi is introduced where the first message is no system message."""
    typescript: bool = True
    """Tools are declared as TypeScript where that can express them; otherwise always as JSON."""
    opens_thinking: bool = True
    """The prompt ends in `<think>` or `<think></think>`; otherwise the model writes the first `<think>`."""
    can_keep: bool = True
    """Earlier reasoning can be kept on request."""
    can_switch: bool = True
    """Without thinking, no reasoning is shown; otherwise that of the running tool loop always is."""
    has_media: bool = True


K26 = Variant("k2.6")
K25 = Variant("k2.5", can_keep=False)
K2_THINKING = Variant(
    "k2-thinking",
    default_system=True,
    typescript=False,
    opens_thinking=False,
    can_keep=False,
    can_switch=False,
    has_media=False,
)
VARIANTS: Mapping[str, Variant] = MappingProxyType({one.name: one for one in (K26, K25, K2_THINKING)})


def candidates() -> tuple[Variant, ...]:
    """Every variant, each with and without the introduction of Kimi, which the family's templates have
    had and lost over time; the likeliest first."""
    other = (replace(one, default_system=not one.default_system) for one in VARIANTS.values())
    return (*VARIANTS.values(), *other)
