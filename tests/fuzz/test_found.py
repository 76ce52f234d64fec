"""What the fuzzer has found, each pinned: it once hung, said too little or came out as Python's own error."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.chat.hostile_media import png_of
from tests.fuzz.checkpoint_targets import framed
from tests.fuzz.targets import TARGETS

from perilune.backends.served import CARD, _read_card
from perilune.chat.jinja import TEMPLATE_FILE, JinjaTemplate
from perilune.chat.media_rules import RULES_FILE, load_rules
from perilune.chat.pictures import decode_image
from perilune.chat.tokenizer import CONFIG_FILE, RANKS_FILE, Tokenizer
from perilune.errors import CheckpointError, InputError, PeriluneError, TokenizerError
from perilune.model.checkpoint import Checkpoint
from perilune.model.content_hash import LIST_NAME, read_list
from perilune.model.headers import INDEX_NAME, scan_header
from perilune.model.inspection import inspect
from perilune.model.make import make_checkpoint
from perilune.model.shapes import SHAPES
from perilune.model.tiny import write_byte_tokenizer
from perilune.model.verify import verify


@pytest.mark.parametrize(
    "content", [b'"\xed\xa0\x80"', b'{"\xff": 1}', b"[" * 100_000], ids=["half", "byte", "deep"]
)
@pytest.mark.parametrize(("name", "read"), [(RULES_FILE, load_rules), (CARD, _read_card)])
def test_json_that_is_no_utf8_is_refused(
    name: str, read: Callable[[Path], object], content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be read|is wrong") as caught:
        read(tmp_path)
    assert caught.value.field == str(tmp_path / name) and caught.value.mend


FILES: list[tuple[str, Callable[[Path], object]]] = [
    (RULES_FILE, load_rules),
    (CARD, _read_card),
    (LIST_NAME, read_list),
    (TEMPLATE_FILE, JinjaTemplate.load),
    (RANKS_FILE, Tokenizer.load),
    (CONFIG_FILE, Tokenizer.load),
]


@pytest.mark.parametrize(("name", "read"), FILES, ids=[name for name, _ in FILES])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(
    name: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    write_byte_tokenizer(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises((CheckpointError, TokenizerError), match="is not a file") as caught:
        read(tmp_path)
    assert caught.value.field == str(tmp_path / name) and caught.value.mend


@pytest.mark.parametrize(("name", "read"), FILES, ids=[name for name, _ in FILES])
def test_a_file_without_end_is_not_read_to_it(
    name: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    write_byte_tokenizer(tmp_path)
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises((CheckpointError, TokenizerError), match="is larger than") as caught:
        read(tmp_path)
    assert caught.value.field == str(tmp_path / name) and caught.value.mend


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        (RANKS_FILE, b"QQ== 65\n", b"QQ==65\n", "line 66 is not `base64 rank`"),
        (RANKS_FILE, b"QQ== 65\n", b"QQ== 64\n", "does not number its 256 tokens from 0 without gaps"),
        (CONFIG_FILE, b'"</think>"', b'"</thought>"', "lacks </think>, a control token"),
        (CONFIG_FILE, b'"[EOT]"', b'"[EOS]"', "ids from 256 on, each once"),
        (CONFIG_FILE, b'"276"', b'"27600000000"', "no vocabulary is so large"),
    ],
)
def test_tokenizer_errors_name_the_file_and_the_mend(
    name: str, old: bytes, new: bytes, says: str, tmp_path: Path
) -> None:
    write_byte_tokenizer(tmp_path)
    path = tmp_path / name
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(tmp_path)
    assert says in caught.value.message
    assert caught.value.field == str(path) and caught.value.mend


@pytest.mark.parametrize(
    "name", ["a\nb", "\ud800", "\u202e", "x" * 100_000], ids=["line", "half", "turn", "long"]
)
def test_a_strangers_name_stays_one_short_line_that_can_be_printed(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(framed({name: {"dtype": "\ud800", "shape": [1], "data_offsets": [0, 4]}}))
    line = str(scan_header(path).faults[name])
    assert line.isprintable() and len(line) < 600
    assert str(PeriluneError("m", field="messages[0].content")) == "messages[0].content: m"


LONG = "x" * 300


@pytest.mark.parametrize("name", [f"{LONG}.safetensors", "..", "a/b.safetensors"])
def test_names_of_files_that_no_system_looks_for(name: str, tmp_path: Path) -> None:
    """Path.is_file raises for a name that is too long."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["tiny"]()))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": name}}))
    (tmp_path / LIST_NAME).write_text(f"{'0' * 64}  {name}\n")
    for read in (inspect, Checkpoint.open, read_list):
        with pytest.raises(CheckpointError) as caught:
            read(tmp_path)
        assert len(str(caught.value)) < 500 and caught.value.mend


def test_an_extra_tensor_that_is_called_like_a_stored_shape(tmp_path: Path) -> None:
    """Verifying looked up the shape of an expert's matrix of that name."""
    make_checkpoint(SHAPES["tiny"](), tmp_path, hashes=False)
    extra = {"odd.weight_shape": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}
    (tmp_path / "odd.safetensors").write_bytes(framed(extra) + bytes(8))
    index = json.loads((tmp_path / INDEX_NAME).read_bytes())
    index["weight_map"]["odd.weight_shape"] = "odd.safetensors"
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    assert [fault.name for fault in verify(tmp_path).faults] == ["odd.weight_shape"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_colours_of_a_palette_that_is_not_there() -> None:
    """Pillow asserts that it is."""
    head = struct.pack(">IIBBBBB", 2, 2, 4, 3, 0, 0, 0)
    data = png_of((b"IHDR", head), (b"IDAT", zlib.compress(bytes(4))), (b"tRNS", b"\xff\xff\0"))
    with pytest.raises(InputError, match="its parts contradict each other") as caught:
        decode_image(data, "messages[0].content[0]")
    assert caught.value.field == "messages[0].content[0]" and caught.value.mend


def test_inputs_found_before(tmp_path: Path) -> None:
    """Whole inputs, as the fuzzer saved them."""
    head = {"a\nb": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 3]}}
    inputs = {
        "config": [b'{"media_proc_cfg":"\xed"}', b'"\xed\xa0\x80"'],
        "shard": [b"\xff" + framed(head)],
        "tokenizer": [b"rQQ== 0\nQQ==", b"c" + json.dumps({"added_tokens_decoder": {}}).encode()],
        "index": [b"i" + json.dumps({"weight_map": {"": "model-00001-of-000001.safetensors"}}).encode()],
    }
    for name, found in inputs.items():
        folder = tmp_path / name
        folder.mkdir()
        TARGETS[name].make(folder)
        for data in found:
            TARGETS[name].check(folder, data)
