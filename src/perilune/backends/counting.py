"""How many tokens a prompt has at an endpoint, counted here with the tokenizer of the endpoint's model."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path
from typing import Self

from perilune.chat.messages import Message, Request, TextPart
from perilune.chat.oracle import Prompter, open_template
from perilune.chat.tokenizer import Tokenizer
from perilune.errors import CheckpointError, PeriluneError, TokenizerError
from perilune.settings import Settings

KEPT = 64
"""Counts that are kept: replicas of one model and the tries of one call ask again for the same request."""
LONG = 50_000
"""Characters from which a prompt is counted in a thread, for other calls must not wait."""


class PromptCounter:
    """Renders prompts as the model's chat format does, and counts their tokens."""

    def __init__(self, tokenizer: Tokenizer, prompter: Prompter) -> None:
        self._tokenizer = tokenizer
        self._prompter = prompter
        self._kept: OrderedDict[int, tuple[Request, int]] = OrderedDict()

    @classmethod
    def load(cls, folder: str, field: str, template: str = "", *, default_system: bool = False) -> Self:
        """The folder holds `tiktoken.model`, `tokenizer_config.json`, and the chat template where the model
        has one. Raises TokenizerError, CheckpointError, ConfigError naming `field`."""
        place = Path(folder).expanduser()
        try:
            return cls(Tokenizer.load(place), open_template(place, template, default_system=default_system))
        except (TokenizerError, CheckpointError) as error:
            error.field = f"{field}, {error.field}" if error.field else field
            raise

    async def count(self, request: Request) -> int | None:
        """None for what only the endpoint can know: how long images and video are, and conversations that
        the format cannot say."""
        kept = self._kept.get(id(request.messages))
        if kept is not None and _same_prompt(kept[0], request):
            return kept[1]
        if any(_has_media(message) for message in request.messages):
            return None
        try:
            if _characters(request) > LONG:
                counted = await asyncio.to_thread(self._count, request)
            else:
                counted = self._count(request)
        except PeriluneError:  # the endpoint may take it all the same, and says so itself if not
            return None
        self._kept[id(request.messages)] = (request, counted)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return counted

    def _count(self, request: Request) -> int:
        return len(self._prompter(request, self._tokenizer))


def counter_of(folder: str, field: str, settings: Settings) -> PromptCounter | None:
    """None where no folder is named."""
    if not folder:
        return None
    return PromptCounter.load(folder, field, settings.template, default_system=settings.default_system)


def _same_prompt(one: Request, other: Request) -> bool:
    """The request is kept with its count, so the address of its messages cannot come to mean others."""
    return (
        one.messages is other.messages
        and one.tools is other.tools
        and (one.thinking, one.keep_thinking) == (other.thinking, other.keep_thinking)
    )


def _has_media(message: Message) -> bool:
    content = message.content
    return isinstance(content, tuple) and any(not isinstance(part, TextPart) for part in content)


def _characters(request: Request) -> int:
    total = 0
    for message in request.messages:
        parts = (message.content,) if isinstance(message.content, str) else message.content or ()
        total += sum(len(part if isinstance(part, str) else getattr(part, "text", "")) for part in parts)
    return total
