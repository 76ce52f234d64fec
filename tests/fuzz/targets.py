"""What is fuzzed: the six doors through which strangers' bytes come in, each as one function.

A target gets bytes and must read them or refuse them by a PeriluneError that names what is wrong and the
mend in one line. Anything else that comes out of it is a finding.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

from tests.chat.media_files import noise, png, url_of, video
from tests.fuzz.mutation import (
    PNG_HEAD,
    Mutator,
    chunk,
    chunks_of,
    damaged_bytes,
    damaged_head,
    damaged_json,
    damaged_media,
    damaged_tokenizer,
)

from perilune.chat import pictures, videos
from perilune.chat.media import plan
from perilune.chat.media_rules import RULES_FILE, MediaRules, load_rules
from perilune.chat.messages import Assembler, Event, Finished, ImagePart, Message, Tool, Usage, VideoPart
from perilune.chat.parsing import StreamParser
from perilune.chat.tokenizer import CONFIG_FILE, RANKS_FILE, Tokenizer
from perilune.errors import CheckpointError, InputError, PeriluneError, TokenizerError
from perilune.model.checkpoint import Checkpoint
from perilune.model.config import load_config
from perilune.model.content_hash import LIST_NAME, content_hash
from perilune.model.headers import INDEX_NAME, SINGLE_NAME, scan_header
from perilune.model.inspection import as_json, inspect
from perilune.model.make import make_checkpoint
from perilune.model.shapes import SHAPES
from perilune.model.tiny import write_byte_tokenizer
from perilune.model.verify import verify

READERS = (pictures, videos)
"""Imported here and not at their first use, so that the fuzzer sees which of their lines are reached."""
ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "src" / "perilune" / "nano_checkpoint"
LONGEST_MESSAGE = 2000


@dataclass(frozen=True)
class Target:
    """`check` raises for a finding. `made` fills a folder once, before the first input."""

    name: str
    seeds: Callable[[], list[bytes]]
    mutate: Mutator
    check: Callable[[Path, bytes], None]
    make: Callable[[Path], object] = field(default=lambda _: None)


def refused(error: PeriluneError, *names: str) -> None:
    """The error says in one line that can be printed what is wrong, where, and what to do."""
    line = str(error)
    assert "\n" not in line and len(line) < LONGEST_MESSAGE, line[:LONGEST_MESSAGE]
    line.encode()
    assert error.field or any(name in line for name in names), line
    assert error.mend, line


# ---- config.json (and preprocessor_config.json, which is read from the same folder)


def config_seeds() -> list[bytes]:
    large = SHAPES["k2.6"]()
    large["text_config"].update(num_hidden_layers=3, n_routed_experts=32)
    documents = [
        SHAPES["tiny"](),
        large,
        json.loads((NANO / "config.json").read_bytes()),
        SHAPES["tiny"]()["text_config"],
        {
            "media_proc_cfg": {
                "patch_size": 14,
                "merge_kernel_size": 2,
                "in_patch_limit": 64,
                "sample_fps": 2.0,
            }
        },
    ]
    return [json.dumps(document).encode() for document in documents]


def check_config(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_bytes(data)
    (folder / RULES_FILE).write_bytes(data)
    with allowed(CheckpointError, "config.json"):
        json.dumps(as_json(inspect(folder / "config.json")))
        config = load_config(folder)
        assert 0 < config.softmax_scale < float("inf")
    with allowed(CheckpointError, RULES_FILE):
        load_rules(folder)


@contextlib.contextmanager
def allowed(kind: type[PeriluneError], *names: str) -> Iterable[None]:
    try:
        yield
    except kind as error:
        refused(error, *names)


# ---- the index (flag i) and the list of hashes (flag h)


def make_index_folder(folder: Path) -> None:
    make_checkpoint(SHAPES["tiny"](), folder, shard_bytes=100_000)


def index_seeds() -> list[bytes]:
    with scratch() as folder:
        make_index_folder(folder)
        index, hashes = (folder / INDEX_NAME).read_bytes(), (folder / LIST_NAME).read_bytes()
    few = {
        "metadata": {"total_size": 9},
        "weight_map": {"lm_head.weight": "model-00001-of-000001.safetensors"},
    }
    return [b"i" + index, b"i" + json.dumps(few).encode(), b"h" + hashes]


def damaged_index(random: Random, data: bytes) -> bytes:
    return data[:1] + damaged_json(random, data[1:])


def check_index(folder: Path, data: bytes) -> None:
    name = LIST_NAME if data[:1] == b"h" else INDEX_NAME
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(data[1:])
    try:
        for read in (inspect, content_hash) if name == LIST_NAME else (inspect, _inspect_alone, _open_few):
            with allowed(CheckpointError, name, ".safetensors"):
                read(folder)
    finally:
        path.write_bytes(whole)


def _inspect_alone(folder: Path) -> None:
    json.dumps(as_json(inspect(folder / INDEX_NAME)))


def _open_few(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    for name in list(checkpoint.entries)[:5]:
        checkpoint.get(name).sum()
    assert all(entry.file.parent == folder for entry in checkpoint.entries.values())


# ---- the head of a safetensors file; an odd first byte lengthens the file by zeros

SMALL = {
    **{"vocab_size": 8, "num_hidden_layers": 2, "n_routed_experts": 2, "num_attention_heads": 1},
    **{"hidden_size": 32, "intermediate_size": 8, "moe_intermediate_size": 32},
}
DATA_BYTES = 60_000


def _small_config() -> dict[str, object]:
    document = SHAPES["tiny"]()
    del document["vision_config"]
    document["text_config"].update(SMALL)
    return document


def make_shard_folder(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(_small_config()))


def shard_seeds() -> list[bytes]:
    with scratch() as folder:
        make_checkpoint(_small_config(), folder)
        (path,) = folder.glob("*.safetensors")
        whole = path.read_bytes()
        head = whole[: 8 + struct.unpack("<Q", whole[:8])[0]]
    empty = {"a": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]}}
    odd = {"b": {"dtype": "I64", "shape": [1], "data_offsets": [4, 12]}, **empty}
    return [b"\1" + head, b"\0" + head, *(b"\1" + framed(one) for one in (empty, odd))]


def framed(head: object) -> bytes:
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text


def check_shard(folder: Path, data: bytes) -> None:
    path = folder / SINGLE_NAME
    path.write_bytes(data[1:])
    if data[:1] > b"\0":
        os.truncate(path, len(data) - 1 + DATA_BYTES * (data[0] & 1))
    with allowed(CheckpointError, SINGLE_NAME):
        header = scan_header(path)
        for fault in header.faults.values():
            refused(fault, SINGLE_NAME)
    with allowed(CheckpointError, SINGLE_NAME):
        json.dumps(as_json(inspect(folder)))
        verify(folder)
    with allowed(CheckpointError, SINGLE_NAME):
        checkpoint = Checkpoint.open(folder)
        for name in checkpoint.entries:
            checkpoint.get(name).flatten()[:1].tolist()


# ---- tokenizer files: flag r for the ranks, c for the control tokens


def make_tokenizer_folder(folder: Path) -> None:
    write_byte_tokenizer(folder)


def tokenizer_seeds() -> list[bytes]:
    with scratch() as folder:
        make_tokenizer_folder(folder)
        small = [
            flag + (folder / name).read_bytes() for flag, name in ((b"r", RANKS_FILE), (b"c", CONFIG_FILE))
        ]
    merges = [*small[0].splitlines(), b"QUI= 256", b"QUJD 257", b"4pi+ 258"]
    config = json.loads(small[1][1:])
    few = {"added_tokens_decoder": {"277": {"content": "[MORE]"}, **config["added_tokens_decoder"]}}
    return [*small, b"\n".join(merges), b"c" + json.dumps(few).encode()]


def check_tokenizer(folder: Path, data: bytes) -> None:
    name = RANKS_FILE if data[:1] == b"r" else CONFIG_FILE
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(data[1:])
    try:
        with allowed(TokenizerError, RANKS_FILE, CONFIG_FILE):
            tokenizer = Tokenizer.load(folder)
            text = "Perilune ☾ 月之暗面 <|im_end|>\n\n  x²"
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text
            assert not {*tokenizer.specials.values()} & {*ids}
            assert max((*ids, *tokenizer.never_sampled)) < tokenizer.vocab_size
    finally:
        path.write_bytes(whole)


# ---- images and videos

RULES = MediaRules()
IMAGES = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
VIDEOS = (("mp4", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4"), ("flv", "flv"), ("mp4", "libx264"))
VIDEO_HEADS = (b"\x1aE\xdf\xa3", b"RIFF", b"FLV")


def media_seeds() -> list[bytes]:
    from PIL import Image

    images = [png(noise(40, 30), format=kind) for kind in IMAGES]
    grey = png(noise(20, 20)[:, :, 0])
    frames = [Image.fromarray(noise(20, 20, seed)) for seed in range(3)]
    moving = []
    for kind in ("GIF", "PNG", "WEBP"):
        with scratch() as folder:
            frames[0].save(folder / "x", format=kind, save_all=True, append_images=frames[1:])
            moving.append((folder / "x").read_bytes())
    chunks = chunks_of(grey)
    texts = [chunks[0], (b"tEXt", b"a\0b"), (b"iTXt", b"a\0\0\0\0\0b"), *chunks[1:]]
    videos = [video(12, container=container, codec=codec) for container, codec in VIDEOS]
    return [*images, grey, *moving, PNG_HEAD + b"".join(chunk(*one) for one in texts), *videos]


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


# ---- all of them


@contextlib.contextmanager
def scratch() -> Iterable[Path]:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


TARGETS = {
    target.name: target
    for target in (
        Target("config", config_seeds, damaged_json, check_config),
        Target("index", index_seeds, damaged_index, check_index, make_index_folder),
        Target("shard", shard_seeds, damaged_head, check_shard, make_shard_folder),
        Target("tokenizer", tokenizer_seeds, damaged_tokenizer, check_tokenizer, make_tokenizer_folder),
        Target("media", media_seeds, damaged_media, check_media),
        Target("parser", parser_seeds, damaged_output, check_parser),
    )
}
