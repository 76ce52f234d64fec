"""The bundled checkpoint is what its card says, and belongs to the code beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nano.probe import prompt_hash

import perilune
from perilune.agent.profiles import bundled_profile, profile_hash
from perilune.chat.tokenizer import Tokenizer
from perilune.model.config import load_config
from perilune.model.content_hash import content_hash

FOLDER = Path(perilune.__file__).parent / "nano_checkpoint"


@pytest.fixture(scope="module")
def entry() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FOLDER / "perilune.json").read_text(encoding="utf-8"))
    return document


def test_it_is_small_enough_to_be_bundled() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 16_000_000


def test_files_match_their_list_and_the_hash(entry: dict[str, Any]) -> None:
    assert content_hash(FOLDER) == entry["content_hash"]


@pytest.mark.parametrize("profile", ["rename", "orchestrate-rename"])
def test_it_was_trained_on_the_shipped_profiles(entry: dict[str, Any], profile: str) -> None:
    assert entry["profiles"][profile] == profile_hash(profile)


def test_it_was_trained_on_the_prompts_that_the_template_makes(entry: dict[str, Any]) -> None:
    assert entry["prompt_hash"] == prompt_hash()


def test_tokenizer_config_and_context_agree(entry: dict[str, Any]) -> None:
    config, tokenizer = load_config(FOLDER), Tokenizer.load(FOLDER)
    assert config.vocab_size == tokenizer.vocab_size == 1024
    assert config.eos_token_id == tokenizer.eos_id
    assert entry["context_length"] <= config.max_position_embeddings
    for name in (entry["orchestrator_profile"], entry["subagent_profile"]):
        profile = bundled_profile(name)
        fitted = profile.fitted(entry["context_length"], entry["max_output_tokens"])
        assert fitted.context.max_tokens == profile.context.max_tokens
        assert fitted.sampling.max_tokens == profile.sampling.max_tokens


def test_the_card_names_what_the_weights_belong_to(entry: dict[str, Any]) -> None:
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    for digest in (entry["content_hash"], entry["prompt_hash"], *entry["profiles"].values()):
        assert digest in card
    assert ("Preliminary" in card) == (entry["training"]["share_of_schedule"] < 1)
