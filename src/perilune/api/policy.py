"""Fits a decoded request to the model that answers it."""

from __future__ import annotations

import msgspec

from perilune.api.schemas import SchemaRules
from perilune.backends.base import ModelEntry
from perilune.chat.messages import ImagePart, Message, Request, VideoPart
from perilune.errors import InputError, UnsupportedInput

_schemas = SchemaRules()


def fit(request: Request, entry: ModelEntry, cache_salt: str) -> Request:
    """The request under the model's own id, its schemas held to the Moonshot flavour, whatever backend serves
    it.

    Raises UnsupportedInput for media that the model does not take, InputError for schemas that it refuses."""
    _check_media(request.messages, entry)
    request = _schemas.fit(request, entry)
    return msgspec.structs.replace(request, model=entry.id, cache_salt=cache_salt)


def check_history(request: Request) -> None:
    """Raises InputError where thinking is on and a tool call of the history lacks the thinking that led to
    it. Empty thinking is enough."""
    for position, message in enumerate(request.messages if request.thinking else ()):
        if message.tool_calls and message.reasoning is None:
            raise InputError(
                "thinking is enabled but reasoning_content is missing in assistant tool call message at "
                f"index {position}",
                field=f"messages[{position}].reasoning_content",
                mend="send back what the answer had, or an empty string",
            )


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
