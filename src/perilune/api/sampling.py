"""The model's sampling policy, applied to what a client asks for.

`strict` refuses all but the accepted values, in the hosted API's order and words; `clamp` takes those for
any other and tells the client so in a header; `open` hands the client's values to the model. Fields of which
only one value is served are refused under `open` too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from perilune.api.http import Headers
from perilune.backends.base import ModelEntry
from perilune.backends.quotes import Quote
from perilune.backends.served import accepted_sampling, own_sampling
from perilune.chat.messages import Request
from perilune.chat.wire import NEUTRAL
from perilune.errors import ContextTooLong, InputError

HEADER = b"x-perilune-adjusted"
HOTTEST = 2.0


class Adjusted(dict[str, Any]):
    """What a request was answered with instead of what it asked for, by field."""

    def headers(self) -> Headers:
        if not self:
            return []
        told = ", ".join(f"{name}={msgspec.json.encode(value).decode()}" for name, value in self.items())
        return [(HEADER, told.encode())]


def hold_sampling(
    request: Request, unserved: Mapping[str, Any], entry: ModelEntry, adjusted: Adjusted
) -> Request:
    """The request with the sampling that its model is to compute with; adds to `adjusted`. `unserved` are the
    request's fields of that name in `ChatCall`.

    Raises InputError for values that the policy refuses."""
    policy = entry.sampling_policy
    if policy == "open":
        _within_bounds(request)
    else:
        accepted = msgspec.structs.asdict(accepted_sampling(entry, request.thinking))
        for name, value in accepted.items():
            if getattr(request, name) not in (None, value):
                _replace_or_refuse(name, value, policy, adjusted)
        own = own_sampling(entry, request.thinking)
        request = msgspec.structs.replace(request, temperature=own.temperature, top_p=own.top_p)
    for name in unserved:
        _replace_or_refuse(name, NEUTRAL[name], policy, adjusted)
    return request


def hold_length(request: Request, quote: Quote, adjusted: Adjusted) -> None:
    """Under `strict`, an answer longer than clients may ask for is refused, as the hosted API does. All
    others are cut to the room that the context has, which `adjusted` tells. A prompt that was counted and
    leaves no room is refused here, for not every engine says what is wrong. Raises ContextTooLong."""
    entry = quote.entry
    limit = max(entry.context_length, int(entry.accepted.get("context_length", 0)))
    prompt = quote.prompt_estimate if quote.counted else 1
    wanted = prompt + (request.max_tokens or 1)
    if entry.sampling_policy == "strict" and wanted > limit:
        raise _too_long(limit, wanted)
    if prompt + 1 > entry.context_length:
        raise _too_long(entry.context_length, prompt + 1)
    if request.max_tokens is not None and quote.max_tokens < request.max_tokens:
        adjusted["max_completion_tokens"] = quote.max_tokens


def _too_long(limit: int, wanted: int) -> ContextTooLong:
    return ContextTooLong(
        f"Invalid request: Your request exceeded model token limit: {limit} (requested: {wanted})",
        mend="shorten the conversation or lower max_tokens",
    )


def _replace_or_refuse(name: str, value: Any, policy: str, adjusted: Adjusted) -> None:
    if policy == "clamp":
        adjusted[name] = value
        return
    only = f"{value:g}" if isinstance(value, float) else msgspec.json.encode(value).decode()
    raise InputError(
        f"invalid {name}: only {only} is allowed for this model", field=name, mend="leave it out"
    )


def _within_bounds(request: Request) -> None:
    temperature, top_p = request.temperature, request.top_p
    if temperature is not None and not 0 <= temperature <= HOTTEST:
        raise InputError(
            f"{temperature:g} is out of range", field="temperature", mend=f"send 0 to {HOTTEST:g}"
        )
    if top_p == 0:
        raise InputError("0 leaves nothing to choose from", field="top_p", mend="send more than 0")
    if top_p is not None and not 0 <= top_p <= 1:
        raise InputError(f"{top_p:g} is out of range", field="top_p", mend="send 0 to 1")
