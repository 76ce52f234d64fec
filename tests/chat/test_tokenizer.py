"""Text to ids and back: the reference's vectors, exact round trips, and files that are refused."""

import base64
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perilune.chat.tokenizer import REQUIRED, Tokenizer
from perilune.errors import TokenizerError
from perilune.model.tiny import SPECIAL_TOKENS, write_byte_tokenizer

VECTORS = [
    ("Hello, world!", "19180 11 2695 0"),
    (
        "The quick brown fox jumps over the lazy dog.",
        "1008 5072 16331 69275 60062 1312 276 29292 7751 13",
    ),
    ("你好，世界！", "33845 378 2243 856"),
    ("月之暗面 Kimi K2.6 模型", "892 685 5519 696 24980 72 1040 17 13 21 220 15662"),
    ("def f(x):\n    return x ** 2\n", "1166 285 3940 2360 274 745 1288 3465 220 17 198"),
    ("3.14159 1234567", "18 13 18702 6276 220 6694 12972 22"),
    (
        "I'm sure they'll've gone — naïve café",
        "17172 3287 55481 7962 12903 4275 7915 44187 367 70591",
    ),
    ("🚀🌙", "5885 40101 5885 234 247"),
    ("  leading and trailing  \n\n\ttabs", "220 8134 316 42711 23118 5604 5609"),
    ("こんにちは한국어", "16444 29194 6880 43566 8831 17079 54078 28763"),
    (
        "“Hello,” 世界世世世界世界——I'm ChatGPT. CAN'T wait 'til 2026.世界世界",
        "1686 19180 4963 220 2243 123421 2243 2243 35086 17172 29338 111021 13 32330 64833 5161 542 3777 "
        "220 2975 21 13 2243 2243",
    ),
    ("}\n///", "896 5101"),
    ("〇一二", "91894 35063"),
    ("a" * 30, "101908 101908 101908 36324 7028"),
    ("<|im_end|><think>", "27 91 348 11129 91 3318 39964 29"),
]
WORDS = {"system": 14062, "user": 2482, "assistant": 69702, "tool": 20960, "image": 4017, "video": 22782}
CONTROLS = {
    "[BOS]": 163584, "[EOS]": 163585, "<|im_end|>": 163586, "<|im_user|>": 163587,
    "<|im_assistant|>": 163588, "<|start_header_id|>": 163590, "<|end_header_id|>": 163591, "[EOT]": 163593,
    "<|im_system|>": 163594, "<|tool_calls_section_begin|>": 163595, "<|tool_calls_section_end|>": 163596,
    "<|tool_call_begin|>": 163597, "<|tool_call_argument_begin|>": 163598, "<|tool_call_end|>": 163599,
    "<|im_middle|>": 163601, "<|media_begin|>": 163602, "<|media_content|>": 163603, "<|media_end|>": 163604,
    "<|media_pad|>": 163605, "<think>": 163606, "</think>": 163607, "[UNK]": 163838, "[PAD]": 163839,
}  # fmt: skip
RANKS_SHA256 = "b6c497a7469b33ced9c38afb1ad6e47f03f5e5dc05f15930799210ec050c5103"


@pytest.mark.parametrize(("text", "ids"), VECTORS)
def test_ids_of_the_reference(official: Tokenizer, text: str, ids: str) -> None:
    assert official.encode(text) == [int(token) for token in ids.split()]
    assert official.decode(official.encode(text)) == text


def test_words_of_the_format(official: Tokenizer) -> None:
    assert {word: official.encode(word) for word in WORDS} == {word: [WORDS[word]] for word in WORDS}
    assert official.encode("tool_declare") == [20960, 35556, 677]
    assert official.encode("\n") == [198]
    assert len(official.encode("<|kimi_k25_video_placeholder|>")) == 10


def test_the_vectors_are_of_this_file(official: Tokenizer) -> None:
    tokens = enumerate(official.token_bytes()[:163_584])
    file = b"".join(b"%b %d\n" % (base64.b64encode(token), rank) for rank, token in tokens)
    assert hashlib.sha256(file).hexdigest() == RANKS_SHA256


def test_control_tokens_of_the_reference(official: Tokenizer) -> None:
    reserved = {number for name, number in official.specials.items() if name.startswith("<|reserved_token_")}
    assert {name: official.specials[name] for name in CONTROLS} == CONTROLS
    assert reserved == set(range(163584, 163840)) - set(CONTROLS.values())
    assert all(official.specials[f"<|reserved_token_{number}|>"] == number for number in reserved)
    assert official.vocab_size == 163840
    assert official.eos_id == 163586
    assert official.stop_ids == (163586, 163585, 163593)
    stops_and_tools = {163585, 163586, 163593, *range(163595, 163600), 163606, 163607}
    assert set(official.never_sampled) == set(range(163584, 163840)) - stops_and_tools


def test_counts_come_from_the_files(small: Tokenizer) -> None:
    assert small.vocab_size == 256 + len(SPECIAL_TOKENS)
    assert list(small.specials) == list(SPECIAL_TOKENS)
    assert small.special("<|im_end|>") == small.eos_id == 258
    assert small.token_bytes()[ord("a")] == b"a"
    assert small.token_bytes()[258] == b"<|im_end|>"


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200))
def test_every_text_comes_back(small: Tokenizer, text: str) -> None:
    ids = small.encode(text)
    assert small.decode(ids) == text
    assert not set(ids) & set(small.specials.values())


def test_official_tokenizer_brings_back_code_and_scripts(official: Tokenizer) -> None:
    text = Path(__file__).read_text(encoding="utf-8") * 3 + "\u200b\x00\r\n\U0001f468‍👩"
    assert official.decode(official.encode(text)) == text


def test_long_runs_are_cut_and_stay_exact(official: Tokenizer) -> None:
    for unit in (" ", "a", "\n", "世"):
        text = unit * 60_001
        ids = official.encode(text)
        assert official.decode(ids) == text
        assert ids == [i for n in (25_000, 25_000, 10_001) for i in official.encode(unit * n)]


def test_broken_utf8_becomes_replacement_characters(small: Tokenizer) -> None:
    assert small.decode(small.encode("é")[:1]) == "\ufffd"
    assert small.decode_bytes([0xFF, 0x41]) == b"\xffA"
    with pytest.raises(TokenizerError, match="not below"):
        small.decode([small.vocab_size])


def test_merges_apply_within_the_pattern(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    added = config["added_tokens_decoder"]
    config["added_tokens_decoder"] = {str(int(token) + 2): entry for token, entry in added.items()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with (tmp_path / "tiktoken.model").open("a") as ranks:
        ranks.write(f"{base64.b64encode(b'ab').decode()} 256\n{base64.b64encode(b'abc').decode()} 257\n")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("abcab ab1") == [257, 256, ord(" "), 256, ord("1")]
    assert tokenizer.special("[BOS]") == 258


def lines(folder: Path) -> list[str]:
    return (folder / "tiktoken.model").read_text().splitlines(keepends=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_byte_tokenizer(tmp_path)
    return tmp_path


def test_missing_file(folder: Path) -> None:
    (folder / "tiktoken.model").unlink()
    with pytest.raises(TokenizerError, match=r"tiktoken\.model.*No such file"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ranks: [*ranks, "!!! 256\n"], "line 257 is not"),
        (lambda ranks: [*ranks[:-1], "/w== 400\n"], "without gaps"),
        (lambda ranks: [*ranks[:65], "QUI= 65\n", *ranks[66:]], "lacks the single byte 0x41"),
        (lambda ranks: [*ranks, "YWI= 256\n"], "names id 256, which is one of the 257 text tokens"),
    ],
)
def test_broken_ranks(folder: Path, change, message: str) -> None:
    (folder / "tiktoken.model").write_text("".join(change(lines(folder))))
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(folder)


@pytest.mark.parametrize("name", REQUIRED)
def test_missing_control_token(folder: Path, name: str) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace(json.dumps(name), '"<|reserved_token_x|>"'))
    with pytest.raises(TokenizerError) as error:
        Tokenizer.load(folder)
    assert error.value.field == str(path) and f"lacks {name}," in error.value.message


@pytest.mark.parametrize("text", ["{", "[]", '{"added_tokens_decoder": {"x": {"content": "a"}}}'])
def test_broken_configuration(folder: Path, text: str) -> None:
    (folder / "tokenizer_config.json").write_text(text)
    with pytest.raises(TokenizerError, match="not a tokenizer configuration"):
        Tokenizer.load(folder)


def test_official_files_load_from_any_folder(official: Tokenizer, small: Tokenizer, folder: Path) -> None:
    shutil.copytree(folder, folder / "copy")
    assert Tokenizer.load(folder / "copy").token_bytes() == small.token_bytes() != official.token_bytes()
