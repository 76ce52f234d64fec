from __future__ import annotations

from pathlib import Path

import pytest

from nano import merges
from perilune.chat.tokenizer import Tokenizer
from perilune.model.tiny import SPECIAL_TOKENS, write_tokenizer

TEXTS = [
    "def load_config(path):\n    config = loadConfig(path)\n    return ConfigLoader(config, path='config')\n",
    "class ConfigLoader:\n    def __init__(self, config, path):\n        self.config = config, path\n" * 3,
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(merges.learn(TEXTS, merges.protocol_texts(), 320), folder)
    return Tokenizer.load(folder)


def test_learnt_tokenizer_loads_with_all_control_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 320 + len(SPECIAL_TOKENS)
    assert set(SPECIAL_TOKENS) == set(tokenizer.specials)


@pytest.mark.parametrize(
    "text", [*TEXTS, "", " ", '{"path": "src/a_b/c1.py", "line": 120}', "naïve 月 \t\r\n\x00", "<|im_end|>"]
)
def test_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "name", ["load_config", "ConfigLoader", "_private", "loadConfig2", "HTTPServer", "x"]
)
def test_a_name_has_the_same_ids_wherever_it_stands(tokenizer: Tokenizer, name: str) -> None:
    alone = tokenizer.encode(name)
    for before, after in (("Rename ", " to"), ('": "', '", "'), ("src/", ".py"), ("\n", "("), (".", "=")):
        whole = tokenizer.encode(before + name + after)
        first = tokenizer.encode(before)
        assert whole[len(first) : len(first) + len(alone)] == alone, (before, after)


def test_no_token_joins_letters_with_anything_else(tokenizer: Tokenizer) -> None:
    for token in tokenizer.token_bytes()[: -len(SPECIAL_TOKENS)]:
        letters = [chr(byte).isalpha() for byte in token if byte < 128]
        assert len(token) == 1 or all(letters) or not any(letters), token


def test_learning_is_reproducible() -> None:
    assert merges.learn(TEXTS, [], 300) == merges.learn(TEXTS, [], 300)


def test_corpus_keeps_held_out_packages_apart(tmp_path: Path) -> None:
    from nano import corpus

    for package in ("trained", "networkx"):
        folder = tmp_path / package
        folder.mkdir()
        body = f"def walk_{package}(edge_{package}):\n    shared = edge_{package}\n    return shared\n" * 9
        (folder / "module.py").write_text(body)
    found, texts = corpus.build([tmp_path])
    assert len(texts) == 1 and "walk_trained" in texts[0]
    assert {record.path for record in found.records} == {"trained/module.py"}
    assert {record.path for record in found.held_records} <= {"networkx/module.py"}
    assert "shared" not in found.held_names, "a name that training saw is not held out"
    assert "walk_networkx" in found.held_names and "walk_networkx" not in found.names
