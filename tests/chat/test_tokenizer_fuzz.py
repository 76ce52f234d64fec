"""Random damage to the tokenizer's files: a TokenizerError, or a tokenizer that works."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perilune.chat.tokenizer import CONFIG_FILE, MOST_TOKENS, RANKS_FILE, Tokenizer
from perilune.errors import TokenizerError
from perilune.model.tiny import write_byte_tokenizer

SECONDS = float(os.environ.get("FUZZ_SECONDS", "30"))
QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
LONG = settings(QUICK, max_examples=300, derandomize=False)
LINES = st.sampled_from(
    [b"", b"=", b"==== 1", b"QQ== 0", b"QUI= 256", b"QQ== -1", b"QQ== 1e3", b"\xff 3", b"QQ==\t7"]
)
WORDS = st.sampled_from(
    [b"-1", b"99999999999", b"163840", b"257", b"null", b"[]", b'"\\ud800"', b"1.5", b'""']
)


@st.composite
def damage(draw: st.DrawFn) -> tuple[str, bytes]:
    """(file, its new content)"""
    if draw(st.booleans()):
        lines = RANKS.splitlines()
        for _ in range(draw(st.integers(1, 4))):
            lines[draw(st.integers(0, len(lines) - 1))] = draw(LINES | st.binary(max_size=12))
        return RANKS_FILE, b"\n".join(lines)
    content = CONFIG
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        content = (
            content[:place] + draw(WORDS | st.binary(max_size=4)) + content[place + draw(st.integers(0, 8)) :]
        )
    return CONFIG_FILE, content


def _files(folder: Path) -> tuple[bytes, bytes]:
    write_byte_tokenizer(folder)
    return (folder / RANKS_FILE).read_bytes(), (folder / CONFIG_FILE).read_bytes()


RANKS, CONFIG = b"", b""


@pytest.fixture(autouse=True, scope="module")
def official_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    global RANKS, CONFIG
    RANKS, CONFIG = _files(tmp_path_factory.mktemp("tokenizer"))


def run(folder: Path, limits: settings) -> None:
    def check(drawn: tuple[str, bytes]) -> None:
        write_byte_tokenizer(folder)
        name, content = drawn
        (folder / name).write_bytes(content)
        try:
            tokenizer = Tokenizer.load(folder)
        except TokenizerError as error:
            assert str(error)
            return
        assert tokenizer.decode(tokenizer.encode("Perilune ☾")) == "Perilune ☾"

    limits(given(damage())(check))()


def test_a_damaged_tokenizer_is_refused_or_works(tmp_path: Path) -> None:
    run(tmp_path, QUICK)


@pytest.mark.slow
def test_a_damaged_tokenizer_is_refused_or_works_for_long(tmp_path: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        run(tmp_path, LONG)


def test_an_id_that_no_vocabulary_has_is_refused_at_once(tmp_path: Path) -> None:
    """It once made a name for every id below it."""
    write_byte_tokenizer(tmp_path)
    document = json.loads((tmp_path / CONFIG_FILE).read_text())
    document["added_tokens_decoder"][str(10 * MOST_TOKENS)] = {"content": "<|far|>"}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(document))
    with pytest.raises(TokenizerError, match="no vocabulary is so large"):
        Tokenizer.load(tmp_path)


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    """They once came out as Python's own error."""
    write_byte_tokenizer(tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes(CONFIG.replace(b'"[BOS]"', b'"\x80[BOS]"', 1))
    with pytest.raises(TokenizerError, match="is not a tokenizer configuration"):
        Tokenizer.load(tmp_path)
