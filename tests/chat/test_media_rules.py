"""Sizes, sampling and timestamps: the numbers of the K2.6 reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.chat.media_rules import (
    MediaRules,
    fit,
    load_rules,
    pieces_of,
    sampled,
    timestamp,
    tokens_of,
)
from perilune.errors import CheckpointError

RULES = MediaRules()


@pytest.mark.parametrize(
    ("size", "resized", "grid", "tokens"),
    [
        ((1, 1), (1, 1), (2, 2), 1),
        ((224, 224), (224, 224), (16, 16), 64),
        ((640, 480), (640, 480), (46, 36), 414),
        ((1024, 1024), (1024, 1024), (74, 74), 1369),
        ((1536, 1024), (1536, 1024), (110, 74), 2035),
        ((1920, 1080), (1920, 1080), (138, 78), 2691),
        ((3840, 2160), (2392, 1345), (172, 98), 4214),
        ((8000, 6000), (2071, 1553), (148, 112), 4144),
        ((100, 9000), (79, 7168), (6, 512), 768),
    ],
)
def test_sizes_of_images(
    size: tuple[int, int], resized: tuple[int, int], grid: tuple[int, int], tokens: int
) -> None:
    fitted = fit(*size, RULES)
    assert (fitted.width, fitted.height) == resized
    assert (fitted.padded_width // 14, fitted.padded_height // 14) == grid
    assert tokens_of(fitted, RULES) == tokens


@pytest.mark.parametrize(
    ("size", "resized", "tokens"),
    [
        ((640, 360), (640, 360), 299),
        ((1280, 720), (1202, 676), 1075),
        ((1920, 1080), (1196, 672), 1032),
    ],
)
def test_sizes_of_frames(size: tuple[int, int], resized: tuple[int, int], tokens: int) -> None:
    fitted = fit(*size, RULES, RULES.in_patch_limit_each_frame)
    assert (fitted.width, fitted.height) == resized
    assert tokens_of(fitted, RULES) == tokens


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_every_size_is_padded_to_whole_tokens_within_the_bounds(width: int, height: int) -> None:
    fitted = fit(width, height, RULES)
    assert 1 <= fitted.width <= min(width, 7168) and 1 <= fitted.height <= min(height, 7168)
    assert fitted.padded_width % 28 == 0 and 0 <= fitted.padded_width - fitted.width < 28
    assert fitted.padded_height % 28 == 0 and 0 <= fitted.padded_height - fitted.height < 28
    rows, columns = fitted.height // 14, fitted.width // 14
    # The limit holds for the original's whole patches; cutting their rests may let a row or column more in.
    assert rows * columns <= 16384 + rows + columns


def test_ten_seconds_at_thirty_frames() -> None:
    indices = sampled(300, 30.0, RULES)
    assert len(indices) == 20
    assert indices[:5] == (0, 16, 31, 47, 63) and indices[-1] == 299
    times = [timestamp(piece[0] / 30) for piece in pieces_of(indices, RULES)]
    assert times == ["00:00:00.000", "00:00:02.100", "00:00:04.200", "00:00:06.299", "00:00:08.400"]


def test_ten_frames_at_one_a_second() -> None:
    pieces = pieces_of(sampled(10, 1.0, RULES), RULES)
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    assert [timestamp(piece[0] / 1) for piece in pieces] == ["00:00:00.000", "00:00:04.000", "00:00:08.000"]


def test_halves_are_rounded_to_even() -> None:
    """2.5 samples are 2, and the frame in the middle of 0 and 5 is 2."""
    assert sampled(5, 4.0, RULES) == (0, 4)
    assert sampled(6, 4.0, RULES)[1] == 2


@given(st.integers(1, 5000), st.floats(0.1, 240))
def test_samples_begin_and_end_with_the_video_and_go_forward(frames: int, fps: float) -> None:
    indices = sampled(frames, fps, RULES)
    assert indices[0] == 0
    assert len(indices) == 1 or indices[-1] == frames - 1
    assert list(indices) == sorted(set(indices))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "00:00:00.000"), (2.107, "00:00:02.107"), (59.9999, "00:00:59.999"), (3725.5, "01:02:05.500")],
)
def test_timestamps(seconds: float, shown: str) -> None:
    assert timestamp(seconds) == shown


def test_rules_come_from_the_folder(tmp_path: Path) -> None:
    assert load_rules(tmp_path) == RULES
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"media_proc_cfg": {"in_patch_limit": 1024, "sample_fps": 1.0, "x": 1}}))
    assert load_rules(tmp_path) == MediaRules(in_patch_limit=1024, sample_fps=1.0)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ("[]", "cannot be read"),
        ('{"media_proc_cfg": {"patch_size": "x"}}', "cannot be read"),
        ('{"media_proc_cfg": {"patch_size": 0}}', "out of range"),
        ('{"media_proc_cfg": {"sample_fps": -1}}', "out of range"),
        ('{"media_proc_cfg": {"image_mean": [0.4, 0.5, 0.5]}}', "image_mean"),
        ('{"media_proc_cfg": {"fixed_output_tokens": 64}}', "fixed_output_tokens"),
    ],
)
def test_rules_that_are_not_ours_are_refused(tmp_path: Path, config: str, match: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(config)
    with pytest.raises(CheckpointError, match=match):
        load_rules(tmp_path)
