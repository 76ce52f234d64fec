"""The vision tower on its own: shapes, what must and must not matter, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from perilune.errors import CheckpointError, InputError
from perilune.model.config import parse_config
from perilune.model.layout import vision_tensors
from perilune.model.load_vision import load_vision
from perilune.model.make import make_checkpoint
from perilune.model.shapes import K26_VISION, SHAPES, TINY_VISION
from perilune.model.tiny import write_tiny_checkpoint
from perilune.model.vision import Grid, Vision, frame_sinusoids, normalised, tokens_of, turns_of
from perilune.model.vision_config import parse_vision


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeing") / "checkpoint"
    make_checkpoint(SHAPES["tiny"](), folder, seed=3)
    return folder


@pytest.fixture(scope="module")
def vision(folder: Path) -> Vision:
    vision = load_vision(folder)
    assert vision
    return vision


def pixels(grid: Grid, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.rand(grid.patches, 3, 14, 14) * 2 - 1


def test_every_official_tensor_has_its_parameter() -> None:
    with torch.device("meta"):
        state = Vision(K26_VISION).state_dict()
    wanted = {spec.name: spec.shape for spec in vision_tensors(K26_VISION)}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == wanted
    assert len(wanted) == 335
    towers = [tensor.numel() for name, tensor in state.items() if name.startswith("vision_tower.")]
    assert sum(towers) == 416_866_032
    assert sum(tensor.numel() for tensor in state.values()) == 416_866_032 + 54_277_888


@pytest.mark.parametrize("grid", [Grid(1, 2, 2), Grid(1, 6, 10), Grid(1, 8, 8), Grid(4, 6, 4)])
def test_a_window_of_four_patches_becomes_one_embedding(vision: Vision, grid: Grid) -> None:
    seen = vision(pixels(grid), grid)
    assert seen.shape == (tokens_of(TINY_VISION, grid), TINY_VISION.text_hidden_size)
    assert tokens_of(TINY_VISION, grid) == grid.height * grid.width // 4


def test_order_of_patches_and_of_frames_matters(vision: Vision) -> None:
    grid = Grid(2, 4, 6)
    given = pixels(grid)
    seen = vision(given, grid)
    frames_swapped = vision(given.view(2, 24, 3, 14, 14).flip(0).flatten(0, 1), grid)
    assert (frames_swapped - seen).abs().max() > 1e-4
    rows_swapped = vision(given.view(2, 4, 6, 3, 14, 14).flip(1).flatten(0, 2), grid)
    assert (rows_swapped - seen).abs().max() > 1e-4


def test_an_image_is_not_a_clip_of_one_repeated_frame(vision: Vision) -> None:
    """A clip's frames carry a sinusoid each, frame 0 too."""
    image = pixels(Grid(1, 4, 4))
    twice = vision(image.repeat(2, 1, 1, 1), Grid(2, 4, 4))
    assert (twice - vision(image, Grid(1, 4, 4))).abs().max() > 1e-4


def test_sinusoids_of_frames() -> None:
    table = frame_sinusoids(4, 1152)
    assert table.shape == (4, 1152)
    assert table[0].tolist() == [0.0] * 576 + [1.0] * 576
    assert table[1, 0].item() == pytest.approx(0.8414709848)
    assert table[3, 575].item() == pytest.approx(3 * 10000 ** (-575 / 576), rel=1e-6)


def test_pairs_turn_by_column_and_row_in_turn() -> None:
    turns = turns_of(Grid(2, 3, 5), 72)
    assert turns.shape == (30, 36)
    assert torch.equal(turns[:15], turns[15:])
    row, column = 2, 4
    angles = turns[row * 5 + column].angle()
    assert angles[2 * 9].item() == pytest.approx(column * 10000 ** (-36 / 72), rel=1e-5)
    assert angles[2 * 9 + 1].item() == pytest.approx(row * 10000 ** (-36 / 72), rel=1e-5)


def test_bytes_become_minus_one_to_one() -> None:
    raw = torch.tensor([0, 255, 51], dtype=torch.uint8)
    torch.testing.assert_close(normalised(raw), torch.tensor([-1.0, 1.0, -0.6]))


@pytest.mark.parametrize(
    "grid", [Grid(5, 2, 2), Grid(0, 2, 2), Grid(1, 3, 2), Grid(1, 2, 514), Grid(1, 0, 2)]
)
def test_a_grid_the_model_cannot_see_is_refused(vision: Vision, grid: Grid) -> None:
    with pytest.raises(InputError, match="media"):
        vision(torch.zeros(max(grid.patches, 1), 3, 14, 14), grid)


def test_a_checkpoint_without_vision_has_none(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    assert load_vision(tmp_path) is None


def test_heads_that_cannot_turn_by_column_and_row_are_refused() -> None:
    document = SHAPES["tiny"]()
    document["vision_config"] |= {"vt_hidden_size": 40, "mm_hidden_size": 40}
    with pytest.raises(CheckpointError, match=r"vt_hidden_size.*multiple of 4"):
        parse_vision(document, parse_config(document))


def test_bfloat16_stays_near_float32(folder: Path, vision: Vision) -> None:
    grid = Grid(1, 6, 6)
    coarse = load_vision(folder, torch.bfloat16)
    assert coarse
    seen = coarse(pixels(grid), grid)
    assert seen.dtype == torch.bfloat16
    wanted = vision(pixels(grid), grid)
    assert (seen.float() - wanted).abs().max() < 0.05 * wanted.abs().max()
