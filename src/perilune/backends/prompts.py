"""Prompts that are made once for a request that is asked about several times: to count, to call, to retry."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from perilune.chat.messages import Request

Made = TypeVar("Made")

KEPT = 64
"""Requests whose prompts are kept; then the oldest is let go."""
LONG = 50_000
"""Characters from which a prompt is tokenised in a thread, for other calls must not wait."""


class KeptPrompts(Generic[Made]):
    """What was made of the last requests' prompts. A request is kept with it, so the address of its messages
    cannot come to mean others."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[Request, Made]] = OrderedDict()

    def keep(self, request: Request, made: Made) -> None:
        self._kept[id(request.messages)] = (request, made)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def find(self, request: Request) -> Made | None:
        kept = self._kept.get(id(request.messages))
        return kept[1] if kept is not None and _same_prompt(kept[0], request) else None

    def take(self, request: Request) -> Made | None:
        """`find`, for the last time."""
        made = self.find(request)
        self._kept.pop(id(request.messages), None)
        return made


def is_long(request: Request) -> bool:
    total = 0
    for message in request.messages:
        parts = (message.content,) if isinstance(message.content, str) else message.content or ()
        total += sum(len(part if isinstance(part, str) else getattr(part, "text", "")) for part in parts)
        total += len(message.reasoning or "") + sum(len(call.arguments) for call in message.tool_calls)
    return total > LONG


def _same_prompt(one: Request, other: Request) -> bool:
    return (
        one.messages is other.messages
        and one.tools is other.tools
        and (one.thinking, one.keep_thinking) == (other.thinking, other.keep_thinking)
    )
