"""Profiles are data: they load, they are checked, and the trained ones do not change."""

import json
from pathlib import Path

import pytest

from perilune.agent.profiles import (
    bundled_profile,
    load_profile,
    parse_profile,
    profile_hash,
    profile_names,
)
from perilune.errors import ConfigError

TOOL = {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
FROZEN = {
    "rename": "0941b6035e2ae753eb3f99d9aa1327518baab859ffd60c3939cc159844e8a798",
    "orchestrate-rename": "eeeafcc7e4d019f8f5d358f379f3c9f251e83c2665d2c30c63df87d156b11e60",
}


def write(folder: Path, **fields: object) -> None:
    profile = {"name": "mine", "tools": [TOOL], **fields}
    (folder / "mine.json").write_text(json.dumps(profile))


def test_every_bundled_profile_loads() -> None:
    assert set(profile_names()) >= {"code", "orchestrate", "orchestrate-rename", "rename"}
    for name in profile_names():
        assert load_profile(name).name == name


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_the_trained_profiles_are_frozen(name: str) -> None:
    assert profile_hash(name) == FROZEN[name], "the bundled model was trained on another profile"


def test_the_hash_ignores_white_space_and_sees_argument_order(tmp_path: Path) -> None:
    properties = {"a": {"type": "string"}, "b": {"type": "string"}}
    swapped = {"b": {"type": "string"}, "a": {"type": "string"}}

    def hash_with(order: dict[str, object], indent: int | None) -> str:
        tool = {"name": "look", "parameters": {"type": "object", "properties": order}}
        (tmp_path / "mine.json").write_text(json.dumps({"name": "mine", "tools": [tool]}, indent=indent))
        return profile_hash("mine", tmp_path)

    assert hash_with(dict(properties), None) == hash_with(dict(properties), 4)
    assert hash_with(dict(properties), None) != hash_with(dict(swapped), None)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"colour": "red"}, "unknown field `colour`"),
        ({"name": "other"}, "names itself 'other'"),
        ({"tools": []}, "at least one tool"),
        ({"tools": [TOOL, TOOL]}, "each name once"),
        ({"tools": [{"name": "x", "parameters": {"type": "string"}}]}, "JSON schema of type object"),
        ({"bind": {"gone": {"at": "words"}}}, "'gone', which it does not have"),
        ({"bind": {"look": {"nowhere": "words"}}}, "no such string argument"),
        ({"bind": {"look": {"at": "anything"}}}, "Invalid enum value 'anything'"),
        ({"context": {"policy": "rolling"}}, "needs round_starts"),
        ({"context": {"policy": "rolling", "round_starts": ["gone"]}}, "'gone'"),
        ({"finish_tool": "gone"}, "'gone'"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"context": {"restart_after_edits": -1}}, "restart_after_edits must be at least 1"),
    ],
)
def test_a_wrong_profile_is_named_with_its_fault(
    tmp_path: Path, fields: dict[str, object], complaint: str
) -> None:
    write(tmp_path, **fields)
    with pytest.raises(ConfigError) as caught:
        load_profile("mine", tmp_path)
    assert complaint in str(caught.value)
    assert "mine" in str(caught.value)


def test_an_unknown_profile_names_the_known_ones(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ConfigError, match="one of: mine"):
        load_profile("../mine", tmp_path)


def test_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a valid profile"):
        parse_profile("{")


def test_a_profile_fits_a_small_model_and_keeps_a_trained_one() -> None:
    fitted = bundled_profile("code").fitted(32_768, 32_768)
    assert fitted.sampling.max_tokens is not None
    assert fitted.context.max_tokens + fitted.sampling.max_tokens < 32_768
    assert bundled_profile("rename").fitted(2_048, 1_024) == bundled_profile("rename")
    assert bundled_profile("code").fitted(262_144, 4_096).sampling.max_tokens == 4_096
