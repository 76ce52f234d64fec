"""Try an endpoint before it is relied on: which models it lists, and whether one answers.

probe = await probe(url, key, name)      then homefile.save_connection(home, probe.url, key, probe.name)
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from perilune.backends.base import ModelEntry, complete
from perilune.backends.endpoint import auth_headers, base_url, new_session
from perilune.backends.listing import choose_model, context_length_of, list_models
from perilune.backends.upstream import UpstreamBackend
from perilune.chat.messages import Completion, Message, Request
from perilune.errors import BackendProtocol, BackendRefused

PROBE_TIMEOUT_S = 60.0
PROBE_TOKENS = 32


@dataclass(frozen=True)
class Probe:
    """What an endpoint showed of itself."""

    url: str
    """Normalised: what to put into the settings."""
    name: str
    """The model that answered."""
    models: tuple[str, ...]
    """All that it lists; empty when it does not list any."""
    context_length: int | None
    """As the endpoint says; None when it does not."""
    seconds: float
    """From the call to the end of the tiny answer."""
    counts_tokens: bool
    """Whether its answers say what they used; if not, charges are estimates."""
    answer: str


async def probe(url: str, key: str = "", name: str = "", *, timeout_s: float = PROBE_TIMEOUT_S) -> Probe:
    """List the models, then ask one for a few tokens, streamed as a swarm will.

    Raises ConfigError (URL, key or name), BackendUnreachable (down, slow), BackendAuth (key),
    BackendProtocol (not OpenAI-shaped), BackendRefused, each with the mend."""
    place, headers = base_url(url), auth_headers(key)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(new_session(timeout_s))
        items: list[dict[str, Any]] = []
        try:
            items = await list_models(session, place, headers, timeout_s)
        except (BackendRefused, BackendProtocol):
            # Some endpoints serve models and list none; with a name the call itself will tell.
            if not name:
                raise
    chosen = choose_model(place, name, items)
    started = time.monotonic()
    completion = await _ask(place, key, chosen, timeout_s)
    return Probe(
        url=place,
        name=chosen,
        models=tuple(str(item["id"]) for item in items),
        context_length=next((context_length_of(item) for item in items if item["id"] == chosen), None),
        seconds=time.monotonic() - started,
        counts_tokens=completion.usage.prompt_tokens > 0,
        answer=str(completion.message.content or completion.message.reasoning or ""),
    )


async def _ask(url: str, key: str, name: str, timeout_s: float) -> Completion:
    entry = ModelEntry(
        id=name, backend="upstream", context_length=PROBE_TOKENS * 16, max_output_tokens=PROBE_TOKENS
    )
    backend = UpstreamBackend(url, key=key, entry=entry, timeout_s=timeout_s, retries=0)
    question = Message(role="user", content="Say ok.")
    try:
        return await complete(
            backend, Request(model=name, messages=(question,), thinking=False, max_tokens=PROBE_TOKENS)
        )
    finally:
        await backend.close()
