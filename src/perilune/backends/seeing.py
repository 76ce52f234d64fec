"""Images and video for our own engine: whether the model takes them, and a request's media as it wants them.

Decoding runs in threads. The pixels of all calls that are open are bounded together: a call whose media do
not fit waits until others have ended.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from perilune.chat.media import Item, Planned, plan
from perilune.chat.media_rules import MediaRules, load_rules
from perilune.chat.messages import ImagePart, Request, TextPart
from perilune.chat.oracle import Prompter
from perilune.chat.placeholders import Prompt, prompt_with_media
from perilune.chat.template import MEDIA_PAD, prompt_ids
from perilune.chat.tokenizer import Tokenizer
from perilune.engine.protocol import Seen
from perilune.errors import CheckpointError, UnsupportedInput
from perilune.model.config import parse_config, read_config
from perilune.model.vision_config import VisionConfig, parse_vision

log = logging.getLogger("perilune.engine")

MOST_OPEN_BYTES = 512 * 1024**2
"""Of patches of all open calls, here and once more in the engine."""
DECODERS = 2
"""Threads of their own: a long video must not keep prompts and operators' acts from theirs."""
LEAVE_OUT = "leave out images and video"


class Seeing:
    """Made by `of`, for one checkpoint."""

    def __init__(self, rules: MediaRules, modalities: tuple[str, ...], mend: str = LEAVE_OUT) -> None:
        self.modalities = modalities
        self._rules = rules
        self._mend = mend
        self._open_bytes = 0
        self._changed = asyncio.Condition()
        self._decoders = ThreadPoolExecutor(DECODERS, "perilune media")

    @classmethod
    def of(cls, folder: Path, tokenizer: Tokenizer) -> Self:
        """Raises CheckpointError when the folder's preprocessing is not for its vision tower."""
        document = read_config(folder)
        vision = parse_vision(document, parse_config(document))
        if vision is None or MEDIA_PAD not in tokenizer.specials:
            return cls(MediaRules(), ("text",))
        rules = load_rules(folder)
        _check_rules(rules, vision, folder)
        modalities = _readable()
        if "video" not in modalities:
            # Clients are told that the model takes none, as of any other model: the operator can mend it.
            log.warning(
                "the model sees more than %s: pip install 'perilune[media]'", " and ".join(modalities)
            )
            return cls(rules, modalities, "pip install 'perilune[media]', or " + LEAVE_OUT)
        return cls(rules, modalities)

    async def plan(self, request: Request) -> tuple[Planned, ...]:
        """The request's media; nothing is decoded yet. Raises UnsupportedInput and InputError."""
        if not self._wanted(request):
            return ()
        return await asyncio.to_thread(plan, request.messages, self._rules)

    async def prompt(
        self,
        request: Request,
        tokenizer: Tokenizer,
        media: Sequence[Planned],
        prompter: Prompter = prompt_ids,
    ) -> Prompt:
        return await asyncio.to_thread(prompt_with_media, request, tokenizer, media, prompter)

    @asynccontextmanager
    async def decoded(self, media: Sequence[Planned], prompt: Prompt) -> AsyncIterator[tuple[Seen, ...]]:
        """The media decoded, in their places; their room is given back at the end. Raises InputError."""
        size = sum(one.patch_bytes for one in media)
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._open_bytes or self._open_bytes + size <= MOST_OPEN_BYTES
            )
            self._open_bytes += size
        gone = threading.Event()
        decoding = asyncio.get_running_loop().run_in_executor(
            self._decoders, _decode, media, prompt.starts, gone
        )
        try:
            yield await decoding
        finally:
            gone.set()
            self._open_bytes -= size
            async with self._changed:
                self._changed.notify_all()

    def _wanted(self, request: Request) -> bool:
        """Whether there are media. Raises UnsupportedInput when the model does not take them."""
        found = False
        for message in request.messages:
            for part in message.content if isinstance(message.content, tuple) else ():
                if isinstance(part, TextPart):
                    continue
                found = True
                if (kind := "image" if isinstance(part, ImagePart) else "video") not in self.modalities:
                    known = " and ".join("images" if one == "image" else one for one in self.modalities)
                    raise UnsupportedInput(
                        f"this model's engine reads {known} only, no {kind}",
                        field="messages.content",
                        mend=self._mend,
                    )
        return found


def _readable() -> tuple[str, ...]:
    """What the packages that are installed can decode."""
    if not (find_spec("PIL") and find_spec("numpy")):
        return ("text",)
    return ("text", "image", *(("video",) if find_spec("av") else ()))


def _decode(media: Sequence[Planned], starts: Sequence[int], gone: threading.Event) -> tuple[Seen, ...]:
    """Stops early, with nothing, once the call that wanted it is gone."""
    items: list[Item] = []
    for one in media:
        for item in one.items():
            if gone.is_set():
                return ()
            items.append(item)
    return tuple(
        Seen(start=start, key=item.key, grid=item.grid, patches=item.patches)
        for start, item in zip(starts, items, strict=True)
    )


def _check_rules(rules: MediaRules, vision: VisionConfig, folder: Path) -> None:
    merge = (rules.merge_kernel_size, rules.merge_kernel_size)
    same = rules.patch_size == vision.patch_size and merge == (vision.merge_height, vision.merge_width)
    if not same or rules.temporal_merge_kernel_size > vision.pos_emb_time:
        raise CheckpointError(
            "preprocessing and vision_config disagree on patches, their merging or frames",
            field=str(folder),
            mend="use the config.json and preprocessor_config.json that came with the weights",
        )
