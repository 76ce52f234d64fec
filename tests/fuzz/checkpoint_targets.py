"""The doors of a checkpoint folder: config.json, index, shards, tokenizer files."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

from tests.fuzz.target import allowed, refused, scratch

from perilune.chat.media_rules import RULES_FILE, load_rules
from perilune.chat.tokenizer import CONFIG_FILE, RANKS_FILE, Tokenizer
from perilune.errors import CheckpointError, TokenizerError
from perilune.model.checkpoint import Checkpoint
from perilune.model.config import load_config
from perilune.model.content_hash import LIST_NAME, content_hash
from perilune.model.headers import INDEX_NAME, ITEM_BYTES, SINGLE_NAME, scan_header
from perilune.model.inspection import inspect
from perilune.model.inspection_json import as_json
from perilune.model.make import make_checkpoint
from perilune.model.shapes import SHAPES
from perilune.model.tiny import write_byte_tokenizer
from perilune.model.verify import verify

NANO = Path(__file__).resolve().parents[2] / "src" / "perilune" / "nano_checkpoint"


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


# ---- the index (flag i) and the list of hashes (flag h)


SMALL = {
    **{"vocab_size": 8, "num_hidden_layers": 1, "first_k_dense_replace": 0, "num_attention_heads": 1},
    **{"n_routed_experts": 1, "num_experts_per_tok": 1},
    **{"hidden_size": 32, "intermediate_size": 8, "moe_intermediate_size": 32},
}
"""26 tensors: what is wrong with one of them is found as well as with 68, in a third of the time."""


def _small_config() -> dict[str, object]:
    document = SHAPES["tiny"]()
    del document["vision_config"]
    document["text_config"].update(SMALL)
    return document


def make_index_folder(folder: Path) -> None:
    make_checkpoint(_small_config(), folder, shard_bytes=8_000)


def index_seeds() -> list[bytes]:
    with scratch() as folder:
        make_index_folder(folder)
        index, hashes = (folder / INDEX_NAME).read_bytes(), (folder / LIST_NAME).read_bytes()
    few = {
        "metadata": {"total_size": 9},
        "weight_map": {"lm_head.weight": "model-00001-of-000001.safetensors"},
    }
    return [b"i" + index, b"i" + json.dumps(few).encode(), b"h" + hashes]


def check_index(folder: Path, data: bytes) -> None:
    name = LIST_NAME if data[:1] == b"h" else INDEX_NAME
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(data[1:])
    try:
        for read in (verify, content_hash) if name == LIST_NAME else (inspect, _inspect_alone, _open_few):
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


# ---- the head of a safetensors file; the first byte says by how many zeros the file is longer

DATA_BYTES = 60_000


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
    plain = [
        {"a": {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * size]}}
        for dtype, size in ITEM_BYTES.items()
    ]
    return [b"\xff" + head, b"\0" + head, *(b"\xff" + framed(one) for one in (empty, odd, *plain))]


def framed(head: object) -> bytes:
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text


def check_shard(folder: Path, data: bytes) -> None:
    path = folder / SINGLE_NAME
    path.write_bytes(data[1:])
    if data[:1] > b"\0":
        os.truncate(path, len(data) - 1 + DATA_BYTES * data[0] // 255)
    with allowed(CheckpointError, SINGLE_NAME):
        header = scan_header(path)
        for fault in header.faults.values():
            refused(fault, SINGLE_NAME)
    with allowed(CheckpointError, SINGLE_NAME):
        json.dumps(as_json(verify(folder).seen))
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
