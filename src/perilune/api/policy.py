"""Fits a decoded request to the model that answers it: its id, modalities and sampling policy."""

from __future__ import annotations

import msgspec

from perilune.backends.base import ModelEntry
from perilune.chat.messages import ImagePart, Message, Request, VideoPart
from perilune.errors import InputError, UnsupportedInput


def fit(request: Request, entry: ModelEntry, *, sampling_policy: str, cache_salt: str) -> Request:
    """The request as the backend gets it. `sampling_policy` overrides the entry's unless empty.

    Raises InputError for sampling that a strict model does not allow, UnsupportedInput for media."""
    _check_media(request.messages, entry)
    policy = sampling_policy or entry.sampling_policy
    mode = "thinking" if request.thinking else "instant"
    allowed = {
        "temperature": entry.sampling.get(f"temperature_{mode}"),
        "top_p": entry.sampling.get("top_p"),
    }
    changes: dict[str, object] = {}
    for name, only in allowed.items():
        if policy == "open" or only is None or getattr(request, name) in (None, only):
            continue
        if policy == "strict":
            raise InputError(
                f"invalid {name}: only {only:g} is allowed for this model", field=name, mend="leave it out"
            )
        changes[name] = None  # clamped: the backend puts the model's own value
    return msgspec.structs.replace(request, model=entry.id, cache_salt=cache_salt, **changes)


def _check_media(messages: tuple[Message, ...], entry: ModelEntry) -> None:
    for position, message in enumerate(messages):
        for place, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
            kind = {ImagePart: "image", VideoPart: "video"}.get(type(part), "text")
            if kind not in entry.modalities:
                raise UnsupportedInput(
                    f"{entry.id} takes no {kind}s",
                    field=f"messages[{position}].content[{place}]",
                    mend="send text, or use a model that does",
                )
