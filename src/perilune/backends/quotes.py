"""What a model call can come to, before it is made: a bound and an estimate of its prompt."""

from __future__ import annotations

import msgspec

from perilune.backends.base import Backend, ModelEntry
from perilune.chat.declaration import declare_typescript
from perilune.chat.messages import Request, TextPart

BYTES_PER_TOKEN = 4
"""For estimates, where nobody told the usage."""
MARKER_TOKENS = 16
"""More than the template puts around one message, call or tool; for bounds."""


class Quote(msgspec.Struct, frozen=True):
    """What a call can come to, before it is made."""

    entry: ModelEntry
    backend: Backend
    """The one that answers."""
    request: Request
    """As that backend takes it."""
    prompt_bound: int
    """Tokens of the prompt, never too few."""
    prompt_estimate: int
    """Tokens of the prompt, as good as is known."""
    max_tokens: int
    """Most tokens of the answer."""
    nano_usd: int
    """The most that the call can cost."""
    least_tokens: int | None = None
    """Where the request leaves the length open: the least to which budgets and balance may cut it."""

    @property
    def counted(self) -> bool:
        """Whether the prompt's tokens were counted, not guessed."""
        return self.prompt_bound == self.prompt_estimate


def guess_prompt(request: Request, entry: ModelEntry) -> tuple[int, int]:
    """(bound, estimate) of the prompt's tokens where the backend cannot count: no token is shorter than a
    byte. What media come to is unknown, so with media the bound is the whole context."""
    size = len(msgspec.json.encode(request.messages))
    markers, media = 1 + len(request.messages) + len(request.tools), False
    if request.tools:
        size += max(len(msgspec.json.encode(request.tools)), len(declare_typescript(request.tools).encode()))
    if request.json_schema is not None:
        size += len(msgspec.json.encode(request.json_schema))
    for message in request.messages:
        markers += len(message.tool_calls)
        if isinstance(message.content, tuple):
            media = media or any(not isinstance(part, TextPart) for part in message.content)
    bound = entry.context_length if media else size + markers * MARKER_TOKENS
    return min(bound, entry.context_length), min(tokens_of(size), entry.context_length)


def tokens_of(size: int) -> int:
    """Of so many bytes, where nobody counted."""
    return -(-size // BYTES_PER_TOKEN)
