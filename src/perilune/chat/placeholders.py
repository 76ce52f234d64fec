"""Media in a prompt: every placeholder repeated as often as its image or piece of a video has tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from perilune.chat.media import Planned
from perilune.chat.messages import Request
from perilune.chat.oracle import Prompter
from perilune.chat.template import MEDIA_PAD, prompt_ids
from perilune.chat.tokenizer import Tokenizer
from perilune.errors import InputError


class Prompt(NamedTuple):
    ids: list[int]
    starts: tuple[int, ...] = ()
    """Where in `ids` the tokens of each item begin."""


def prompt_with_media(
    request: Request, tokenizer: Tokenizer, media: Sequence[Planned], prompter: Prompter = prompt_ids
) -> Prompt:
    """The prompt of a request whose images and videos are `media`, in order.

    Raises InputError when they are not as many as the request has."""
    ids = prompter(request, tokenizer, video_times=[one.times for one in media if one.times])
    counts = [count for one in media for count in one.tokens]
    return expand(ids, tokenizer.special(MEDIA_PAD), counts)


def expand(ids: Sequence[int], placeholder: int, counts: Sequence[int]) -> Prompt:
    """Each placeholder in `ids` repeated by its count. Raises InputError when there are more or fewer."""
    found = ids.count(placeholder)
    if found != len(counts):
        raise InputError(
            f"the prompt has {found} media placeholders for {len(counts)} images and pieces of video",
            field="messages",
            mend="send each image and video as a content part of its own",
        )
    out: list[int] = []
    starts: list[int] = []
    for token in ids:
        if token == placeholder:
            starts.append(len(out))
            out += [placeholder] * counts[len(starts) - 1]
        else:
            out.append(token)
    return Prompt(out, tuple(starts))
