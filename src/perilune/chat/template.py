"""K2.6's chat format: a conversation to the pieces of a prompt.

A prompt is a sequence of pieces: control tokens (`Special`) and text. Only this module makes control
tokens; whatever users, tools and files say stays text, so a message that spells `<|im_end|>` is just that
spelling. There is no BOS and nothing between turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from perilune.chat.declaration import declare, declare_json
from perilune.chat.messages import ImagePart, Message, Request, TextPart, Tool, ToolCall, VideoPart
from perilune.chat.tokenizer import (
    CALL_ARGUMENTS,
    CALL_BEGIN,
    CALL_END,
    END_THINK,
    IM_ASSISTANT,
    IM_END,
    IM_MIDDLE,
    IM_SYSTEM,
    IM_USER,
    SECTION_BEGIN,
    SECTION_END,
    THINK,
    Tokenizer,
)
from perilune.chat.variants import K26, Variant
from perilune.errors import InputError, UnsupportedInput

MEDIA_BEGIN = "<|media_begin|>"
MEDIA_CONTENT = "<|media_content|>"
MEDIA_PAD = "<|media_pad|>"
MEDIA_END = "<|media_end|>"
DEFAULT_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."


@dataclass(frozen=True, slots=True)
class Special:
    """A control token by name."""

    name: str


Piece = str | Special


def render(
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    thinking: bool,
    keep_thinking: bool = False,
    generate: bool = True,
    variant: Variant = K26,
    video_times: Sequence[Sequence[str]] | None = None,
) -> tuple[Piece, ...]:
    """The prompt of a conversation; texts that touch are one piece.

    `generate` opens the assistant's turn at the end, unless the last message is partial: then the model
    goes on within it. `video_times` say when the pieces of each video begin; an image or a piece is one
    placeholder here. Raises InputError when they are not as many as the videos, UnsupportedInput for a video
    without them."""
    times = times_of_each(messages, video_times)
    messages = canonical_calls(messages)
    if variant.default_system and (not messages or messages[0].role != "system"):
        messages = (Message(role="system", content=DEFAULT_SYSTEM), *messages)
    keep = keep_thinking and variant.can_keep
    return tuple(_joined(_pieces(messages, tools, thinking, keep, generate, variant, times)))


def render_text(
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    thinking: bool,
    keep_thinking: bool = False,
    generate: bool = True,
    variant: Variant = K26,
    video_times: Sequence[Sequence[str]] | None = None,
) -> str:
    """The prompt of `render` as text, for people: here a control token and its spelling look alike."""
    return spelt(
        render(
            messages,
            tools,
            thinking=thinking,
            keep_thinking=keep_thinking,
            generate=generate,
            variant=variant,
            video_times=video_times,
        )
    )


def spelt(pieces: Iterable[Piece]) -> str:
    """The pieces as text, control tokens by their names."""
    return "".join(piece if isinstance(piece, str) else piece.name for piece in pieces)


def encode(pieces: Iterable[Piece], tokenizer: Tokenizer) -> list[int]:
    """Token ids of the pieces, each text by itself."""
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, str):
            ids.extend(tokenizer.encode(piece))
        else:
            ids.append(tokenizer.special(piece.name))
    return ids


def prompt_ids(
    request: Request,
    tokenizer: Tokenizer,
    variant: Variant = K26,
    *,
    video_times: Sequence[Sequence[str]] | None = None,
) -> list[int]:
    """Token ids of the prompt of a request. Raises InputError naming what in it is no Unicode text.

    Where the model would write the first `<think>` itself it is put into the prompt all the same: it always
    comes, and whoever reads the answer then need not know."""
    refuse_surrogates(request)
    pieces = render(
        request.messages,
        request.tools,
        thinking=request.thinking,
        keep_thinking=request.keep_thinking,
        variant=variant,
        video_times=video_times,
    )
    ids = encode(pieces, tokenizer)
    if not variant.opens_thinking and not is_partial(request.messages):
        ids += encode(_think_marks(request.thinking), tokenizer)
    return ids


def refuse_surrogates(request: Request) -> None:
    """Raises InputError for a text that holds half a surrogate pair: it has no UTF-8, so no tokens."""
    for field, text in _texts(request):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                "holds half a surrogate pair, which is no character",
                field=field,
                mend="remove it or send the whole character",
            ) from error


def _texts(request: Request) -> Iterator[tuple[str, str]]:
    """Every text that a prompt shows, with the name of its field."""
    for position, message in enumerate(request.messages):
        for name, text in _texts_of(message):
            yield f"messages[{position}].{name}", text
    for place, tool in enumerate(request.tools):
        yield f"tools[{place}].function", declare_json((tool,))


def _texts_of(message: Message) -> Iterator[tuple[str, str]]:
    yield "name", message.name or ""
    yield "reasoning_content", message.reasoning or ""
    yield "tool_call_id", message.tool_call_id or ""
    content = message.content or ""
    for part in (TextPart(content),) if isinstance(content, str) else content:
        yield "content", part.text if isinstance(part, TextPart) else ""
    for place, call in enumerate(message.tool_calls):
        yield f"tool_calls[{place}].function.name", call.name
        yield f"tool_calls[{place}].function.arguments", call.arguments


def starts_thinking(request: Request) -> bool:
    """Whether the prompt ends inside an open think block, so that the answer begins with reasoning."""
    return request.thinking and not is_partial(request.messages)


# ---- tool-call ids


def canonical_calls(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with every call id as `functions.NAME:IDX`, results following their calls.

    The id is the only place where the model sees the function's name, and K2 answers foreign ids by empty
    turns. An index that already counts up is kept, so a conversation whose beginning was dropped goes on
    with its numbers."""
    return _renumbered(messages)[0]


def next_call_index(messages: Sequence[Message]) -> int:
    """The IDX of the next call of this conversation."""
    return _renumbered(messages)[1]


def call_id(name: str, index: int) -> str:
    return f"functions.{name}:{index}"


def _renumbered(messages: Sequence[Message]) -> tuple[tuple[Message, ...], int]:
    counter = 0
    answers: dict[str, list[str]] = {}
    out: list[Message] = []
    for message in messages:
        if message.tool_calls:
            calls: list[ToolCall] = []
            fresh: dict[str, list[str]] = {}
            for call in message.tool_calls:
                index = max(_own_index(call), counter)
                calls.append(msgspec.structs.replace(call, id=call_id(call.name, index)))
                fresh.setdefault(call.id, []).append(calls[-1].id)
                counter = index + 1
            answers.update(fresh)
            message = msgspec.structs.replace(message, tool_calls=tuple(calls))
        elif message.role == "tool" and message.tool_call_id in answers:
            ids = answers[message.tool_call_id]
            # Several calls that share an id are answered in their order.
            renamed = ids.pop(0) if len(ids) > 1 else ids[0]
            message = msgspec.structs.replace(message, tool_call_id=renamed)
        out.append(message)
    return tuple(out), counter


def _own_index(call: ToolCall) -> int:
    """The index that the id carries; -1 for a foreign id."""
    found = re.fullmatch(r"(?:functions\.)?" + re.escape(call.name) + r":([0-9]{1,9})", call.id)
    return int(found[1]) if found else -1


# ---- turns


def _pieces(
    messages: Sequence[Message],
    tools: Sequence[Tool],
    thinking: bool,
    keep_thinking: bool,
    generate: bool,
    variant: Variant,
    times: Iterator[Sequence[str]],
) -> Iterator[Piece]:
    if tools:
        yield from (Special(IM_SYSTEM), "tool_declare", Special(IM_MIDDLE))
        yield from (declare(tools) if variant.typescript else declare_json(tools), Special(IM_END))
    settled = -1 if keep_thinking else _last_answer(messages)
    goes_on = is_partial(messages)
    shows_reasoning = thinking or not variant.can_switch
    for index, message in enumerate(messages):
        partial = goes_on and index == len(messages) - 1
        if message.role == "assistant":
            yield from _assistant(message, shows_reasoning and (index > settled or partial), times)
        else:
            yield from _turn(message, times)
        if not partial:
            yield Special(IM_END)
    if generate and not goes_on:
        yield from (Special(IM_ASSISTANT), "assistant", Special(IM_MIDDLE))
        if variant.opens_thinking:
            yield from _think_marks(thinking)


def _think_marks(thinking: bool) -> tuple[Special, ...]:
    """What an answer's turn begins with: reasoning left open, or none."""
    return (Special(THINK),) if thinking else (Special(THINK), Special(END_THINK))


def _last_answer(messages: Sequence[Message]) -> int:
    """Position of the last assistant message without calls: reasoning up to it is no longer shown."""
    answers = (i for i, one in enumerate(messages) if one.role == "assistant" and not one.tool_calls)
    return max((i for i in answers if not messages[i].partial), default=-1)


def is_partial(messages: Sequence[Message]) -> bool:
    """Whether the model goes on within the last message."""
    return bool(messages) and messages[-1].role == "assistant" and messages[-1].partial


def _turn(message: Message, times: Iterator[Sequence[str]]) -> Iterator[Piece]:
    yield from (Special(IM_USER if message.role == "user" else IM_SYSTEM), message.name or message.role)
    yield Special(IM_MIDDLE)
    if message.role == "tool":
        yield f"## Return of {message.tool_call_id or ''}\n"
    yield from _content(message, times)


def _assistant(message: Message, show_reasoning: bool, times: Iterator[Sequence[str]]) -> Iterator[Piece]:
    yield from (Special(IM_ASSISTANT), message.name or message.role, Special(IM_MIDDLE), Special(THINK))
    if show_reasoning:
        yield message.reasoning or ""
    yield Special(END_THINK)
    yield from _content(message, times)
    if message.tool_calls:
        yield Special(SECTION_BEGIN)
        for call in message.tool_calls:
            yield from (Special(CALL_BEGIN), call.id, Special(CALL_ARGUMENTS))
            yield from (call.arguments, Special(CALL_END))
        yield Special(SECTION_END)


def _content(message: Message, times: Iterator[Sequence[str]]) -> Iterator[Piece]:
    content = message.content or ""
    for part in (TextPart(content),) if isinstance(content, str) else content:
        match part:
            case TextPart():
                yield part.text
            case ImagePart():
                yield from (*_placeholder("image"), "\n")
            case VideoPart():
                yield from (*video_pieces(next(times)), "\n")


def times_of_each(
    messages: Sequence[Message], video_times: Sequence[Sequence[str]] | None
) -> Iterator[Sequence[str]]:
    """The times of one video after the other. Raises as `render` does."""
    videos = [
        f"messages[{position}].content[{place}]"
        for position, message in enumerate(messages)
        for place, part in enumerate(message.content if isinstance(message.content, tuple) else ())
        if isinstance(part, VideoPart)
    ]
    if videos and video_times is None:
        raise UnsupportedInput("video is not supported here", field=videos[0], mend="leave it out")
    times = video_times or ()
    if len(times) != len(videos):
        raise InputError(
            f"the messages hold {len(videos)} videos, and {len(times)} were read",
            field=videos[len(times)] if len(times) < len(videos) else "messages",
            mend="send each video as a content part of its own",
        )
    return iter(times)


def video_pieces(times: Sequence[str]) -> Iterator[Piece]:
    """A video in a prompt, by the times at which its pieces begin: one placeholder for each."""
    for time in times:
        yield from (time, *_placeholder("video"))


def _placeholder(kind: str) -> tuple[Piece, ...]:
    return (Special(MEDIA_BEGIN), kind, Special(MEDIA_CONTENT), Special(MEDIA_PAD), Special(MEDIA_END))


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Texts that touch become one, for tokens may reach across; empty ones vanish."""
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        if text:
            yield text
            text = ""
        yield piece
    if text:
        yield text
