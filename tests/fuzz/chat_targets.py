"""The doors of a conversation: images and videos of clients, and what a model writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random

from tests.chat.media_files import url_of
from tests.fuzz.media_seeds import images, videos
from tests.fuzz.mutation import damaged_bytes
from tests.fuzz.target import refused, scratch

from perilune.chat import pictures
from perilune.chat import videos as video_reader
from perilune.chat.media import plan
from perilune.chat.media_rules import MediaRules
from perilune.chat.messages import Assembler, Event, Finished, ImagePart, Message, Tool, Usage, VideoPart
from perilune.chat.parsing import StreamParser
from perilune.chat.tokenizer import Tokenizer
from perilune.errors import InputError
from perilune.model.tiny import write_byte_tokenizer

READERS = (pictures, video_reader)
"""Imported here and not at their first use, so that the fuzzer sees which of their lines are reached."""
ROOT = Path(__file__).resolve().parents[2]


# ---- images and videos

RULES = MediaRules()
VIDEO_HEADS = (b"\x1aE\xdf\xa3", b"RIFF", b"FLV")


def media_seeds() -> list[bytes]:
    return [*images(), *videos()]


def check_media(_: Path, data: bytes) -> None:
    is_video = data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
    is_video = is_video or (data.startswith(VIDEO_HEADS) and data[8:12] != b"WEBP")
    part = VideoPart(url_of(data)) if is_video else ImagePart(url_of(data))
    try:
        for one in plan([Message(role="user", content=(part,))], RULES):
            items = list(one.items())
            assert len(items) == len(one.tokens)
            assert sum(len(item.patches) for item in items) == one.patch_bytes
    except InputError as error:
        refused(error)
        assert error.field == "messages[0].content[0]"


# ---- what a model writes: a byte is a byte of text, those from 240 on are control tokens

MARKERS = (
    *("<think>", "</think>", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    *("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|im_end|>"),
    *("<|media_pad|>", "<|im_user|>"),
)
FIRST_MARKER = 240
TOOLS = (
    Tool(name="search", parameters={"type": "object", "properties": {"path": {}}, "required": ["path"]}),
    Tool(name="write", parameters={"type": "object", "properties": {"path": {}, "text": {}}}),
)
_parsers: dict[str, Tokenizer] = {}


def _tokenizer() -> Tokenizer:
    if not _parsers:
        with scratch() as folder:
            write_byte_tokenizer(folder)
            _parsers["small"] = Tokenizer.load(folder)
    return _parsers["small"]


def parser_seeds() -> list[bytes]:
    """A flag byte and the outputs of the corpus, control tokens as single bytes."""
    seeds: list[bytes] = []
    for line in (ROOT / "tests" / "chat" / "model_outputs.jsonl").read_text().splitlines():
        case = json.loads(line)
        if isinstance(case["output"], str):
            data = case["output"].encode()
            for place, name in enumerate(MARKERS):
                data = data.replace(name.encode(), bytes((FIRST_MARKER + place,)))
            seeds.append(bytes((case["thinking"],)) + data)
    return seeds


def damaged_output(random: Random, data: bytes) -> bytes:
    if random.random() < 0.4:
        return damaged_bytes(random, data)
    out = bytearray(data or b"\0")
    for _ in range(random.choice((1, 2, 4))):
        at = random.randrange(len(out))
        out[at:at] = random.choice(
            (
                bytes((FIRST_MARKER + random.randrange(len(MARKERS)),)),
                b" \n",
                b'{"path":',
                b"functions.",
                b":0",
            )
        )
    return bytes(out)


def check_parser(_: Path, data: bytes) -> None:
    flags, body = data[:1] or b"\0", data[1:]
    tokenizer = _tokenizer()
    marked = [tokenizer.special(name) for name in MARKERS]
    ids = [marked[byte - FIRST_MARKER] if 0 <= byte - FIRST_MARKER < len(MARKERS) else byte for byte in body]
    text = tokenizer.decode(ids)
    random = Random(body)
    _same_however_cut(flags[0], ids, StreamParser.feed, random)
    _same_however_cut(flags[0], text, StreamParser.feed_text, random)


def _same_however_cut(
    flags: int, stream: list[int] | str, feed: Callable[..., list[Event]], random: Random
) -> None:
    whole = _completion(flags, [stream], feed)
    assert _completion(flags, [stream[at : at + 1] for at in range(len(stream))], feed) == whole
    places = sorted(random.randrange(len(stream) + 1) for _ in range(3))
    cuts = [0, *places, len(stream)]
    assert _completion(flags, [stream[a:b] for a, b in pairwise(cuts)], feed) == whole


def _completion(
    flags: int, portions: list[list[int]] | list[str], feed: Callable[..., list[Event]]
) -> object:
    tools = TOOLS[: flags >> 1 & 3]
    parser = StreamParser(_tokenizer(), thinking=bool(flags & 1), first_call=3, tools=tools)
    assembler = Assembler()
    for portion in portions:
        for event in feed(parser, portion):
            assembler.add(event)
    for event in (*parser.close(), Finished("stop", Usage())):
        assembler.add(event)
    assert not parser.feed([65]) and not parser.feed_text("x") and not parser.close()
    return assembler.completion(), parser.called, parser.truncated, parser.reasoning_tokens
