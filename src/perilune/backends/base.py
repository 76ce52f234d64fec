"""The one interface to any model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import msgspec

from perilune.chat.messages import Assembler, Completion, Event, Request
from perilune.errors import BackendInterrupted


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One served model, as data. Nothing in Perilune branches on a model's name: it asks the entry."""

    id: str
    aliases: tuple[str, ...] = ()
    backend: str
    """Name of the backend that serves it: `embedded`, `upstream`, `scripted`, ..."""
    context_length: int
    """Tokens, prompt and output together."""
    max_output_tokens: int
    bytes_per_token: float = 4.0
    """About how much text one token holds; for estimates only."""
    modalities: tuple[str, ...] = ("text",)
    sampling: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """Effective sampling, what is computed with unless a call of ours or the policy `open` says otherwise:
    temperature_thinking, temperature_instant, top_p. What is not named is K2.6's."""
    accepted: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """What clients may send for them under `strict`; what is not named is as in `sampling`. Also
    `context_length`: prompt and asked-for answer together, where that is more than the model has. The
    answer is then cut to the room there is."""
    sampling_policy: str = "open"
    """Of the API's door: `strict` refuses other values as the hosted API does, `clamp` replaces them and
    says so, `open` honours them. Calls that this process makes itself are not held to it."""
    fixed_sampling: bool = False
    """The endpoint behind it computes with its own sampling and may refuse any other: none is sent there."""
    schema_policy: str = "repair"
    """`strict` refuses schemas that are not Moonshot-flavoured, `repair` mends them."""
    price: str = "kimi-k2.6"
    """The price book's entry that this model is billed by."""
    goals: str = "any"
    """`any`, or `rename`: the model does only canonical rename goals, and the swarm refuses others
    before anything is spent."""
    orchestrator_profile: str = "orchestrate"
    subagent_profile: str = "code"
    owned_by: str = "perilune"
    licence: str = ""


class Backend(Protocol):
    """A source of completions. Implementations: embedded, upstream, scripted, faulty, metered."""

    async def models(self) -> tuple[ModelEntry, ...]:
        """The models this backend serves now. Raises BackendError."""
        ...

    def stream(self, request: Request) -> AsyncIterator[Event]:
        """Events of one answer, `Finished` last. Closing the iterator aborts the call upstream.

        Raises a BackendError or EngineError subclass, before the first event or (as
        BackendInterrupted) after it; InputError for a request it cannot express."""
        ...

    async def ready(self) -> None:
        """Raises BackendError or EngineError when no call would succeed just now. Cheap to ask often."""
        ...

    async def count_tokens(self, request: Request) -> int | None:
        """Prompt tokens of the request, or None when the backend cannot know without calling."""
        ...

    async def close(self) -> None: ...


async def complete(backend: Backend, request: Request) -> Completion:
    """Run a call to its end. Raises BackendInterrupted when the stream stops short."""
    assembler = Assembler()
    async for event in backend.stream(request):
        assembler.add(event)
    if not assembler.complete:
        raise BackendInterrupted("the model's stream ended before it was complete", mend="try again")
    return assembler.completion()
