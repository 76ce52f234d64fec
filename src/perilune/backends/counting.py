"""How many tokens a prompt has at an endpoint, counted here with the tokenizer of the endpoint's model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Self

from perilune.backends.prompts import KeptPrompts, is_long
from perilune.chat.messages import Message, Request, TextPart
from perilune.chat.oracle import Prompter, open_template
from perilune.chat.tokenizer import Tokenizer
from perilune.errors import CheckpointError, PeriluneError, TokenizerError
from perilune.settings import Settings


class PromptCounter:
    """Renders prompts as the model's chat format does, and counts their tokens."""

    def __init__(self, tokenizer: Tokenizer, prompter: Prompter) -> None:
        self._tokenizer = tokenizer
        self._prompter = prompter
        self._kept: KeptPrompts[int] = KeptPrompts()

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
        kept = self._kept.find(request)
        if kept is not None:
            return kept
        if any(_has_media(message) for message in request.messages):
            return None
        try:
            if is_long(request):
                counted = await asyncio.to_thread(self._count, request)
            else:
                counted = self._count(request)
        except PeriluneError:  # the endpoint may take it all the same, and says so itself if not
            return None
        self._kept.keep(request, counted)
        return counted

    def _count(self, request: Request) -> int:
        return len(self._prompter(request, self._tokenizer))


def counter_of(folder: str, field: str, settings: Settings) -> PromptCounter | None:
    """None where no folder is named."""
    if not folder:
        return None
    return PromptCounter.load(folder, field, settings.template, default_system=settings.default_system)


def _has_media(message: Message) -> bool:
    content = message.content
    return isinstance(content, tuple) and any(not isinstance(part, TextPart) for part in content)
