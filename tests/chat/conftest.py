"""Tokenizers for the tests of this room: the official one where it lies at hand, and a small one."""

import os
from pathlib import Path

import pytest

from perilune.chat.tokenizer import Tokenizer
from perilune.model.tiny import write_byte_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def official() -> Tokenizer:
    named = os.environ.get("PERILUNE_K26_TOKENIZER")
    folder = Path(named) if named else ROOT.parent / "shared" / "data" / "k26-tokenizer"
    if not folder.is_dir():
        pytest.skip(f"no K2.6 tokenizer at {folder}: set PERILUNE_K26_TOKENIZER to its folder")
    return Tokenizer.load(folder)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(folder)
    return Tokenizer.load(folder)
