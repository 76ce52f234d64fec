"""Vision, and text with vision, against transformers' own K2.5 classes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perilune.model.attention import CausalAttention
from perilune.model.load import load_model
from perilune.model.load_vision import load_vision
from perilune.model.make import make_checkpoint
from perilune.model.shapes import TINY_VISION, vision_document
from perilune.model.tiny import TINY
from perilune.model.vision import Grid, Vision
from perilune.model.vision_config import VisionConfig
from perilune.model.writer import official_config

pytestmark = [
    pytest.mark.oracle,
    # What other packages warn about while they import and build is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]

PAD = TINY.vocab_size - 5
VIDEO_PAD = PAD + 1
"""transformers tells images from video by the token; K2.6 has one token for both."""
TEXT = replace(TINY, quantization=None, num_hidden_layers=2)
SHAPES = {
    "tiny": TINY_VISION,
    "one_head_of_72": replace(TINY_VISION, hidden_size=144, num_attention_heads=2, intermediate_size=80),
    # transformers stretches square tables only.
    "larger_table": replace(TINY_VISION, pos_emb_height=20, pos_emb_width=20, num_hidden_layers=3),
}
ITEMS = {
    "stretched": [Grid(1, 6, 10)],
    "table_as_it_is": [Grid(1, 8, 8)],
    "one_token": [Grid(1, 2, 2)],
    "several": [Grid(1, 4, 6), Grid(1, 12, 2), Grid(1, 8, 8)],
    "clip_of_3": [Grid(3, 4, 6)],
    "clips": [Grid(4, 6, 4), Grid(4, 6, 4)],
    "image_and_clips": [Grid(1, 10, 4), Grid(2, 4, 4), Grid(2, 4, 4)],
}


def write(folder: Path, vision: VisionConfig, seed: int) -> None:
    document = official_config(TEXT) | {"vision_config": vision_document(vision)}
    make_checkpoint(document, folder, seed=seed)


def theirs(folder: Path, vision: VisionConfig) -> Any:
    """transformers' model of the same files. It ignores the official names in vision_config."""
    transformers = pytest.importorskip("transformers")
    yarn = TEXT.yarn
    assert yarn
    apart = {"yarn", "quantization", "latent_norm_eps"}
    text = {name: value for name, value in vars(TEXT).items() if name not in apart}
    text |= {
        "model_type": "deepseek_v3",
        "num_key_value_heads": TEXT.num_attention_heads,
        "n_group": 1,
        "topk_group": 1,
        "rope_scaling": {**vars(yarn), "type": "yarn"},
    }
    shape = vars(vision) | {"merge_kernel_size": [vision.merge_height, vision.merge_width]}
    config = transformers.models.kimi_k25.Kimi_K25Config(
        text_config=text,
        vision_config=shape,
        projection_hidden_size=vision.hidden_size,
        projection_layer_norm_eps=vision.projector_ln_eps,
        image_token_id=PAD,
        video_token_id=VIDEO_PAD,
        tie_word_embeddings=False,
    )
    model, report = transformers.models.kimi_k25.Kimi_K25ForConditionalGeneration.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


def pixels_of(grids: list[Grid]) -> list[Tensor]:
    return [torch.rand(grid.patches, 3, 14, 14) * 2 - 1 for grid in grids]


def see(vision: Vision, grids: list[Grid], pixels: list[Tensor]) -> Tensor:
    return torch.cat([vision(one, grid) for one, grid in zip(pixels, grids, strict=True)])


def their_features(model: Any, grids: list[Grid], pixels: list[Tensor]) -> Tensor:
    """Around get_video_features, whose split of the result is wrong for clips."""
    if not grids:
        return torch.empty(0, TEXT.hidden_size)
    seen = model.model.vision_tower(torch.cat(pixels), grid_thw=torch.tensor(grids))
    out: Tensor = model.model.mm_projector(seen.pooler_output).squeeze(1)
    return out


def their_logits(model: Any, ids: Tensor, images: Tensor, clips: Tensor) -> Tensor:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    seen = {
        kind: outputs.BaseModelOutputWithPooling(pooler_output=(features,))
        for kind, features in (("image", images), ("video", clips))
        if len(features)
    }
    logits: Tensor = model(ids[None], mm_encoder_outputs=seen).logits[0]
    return logits


def divided(grids: list[Grid], pixels: list[Tensor]) -> tuple[tuple[list[Grid], list[Tensor]], ...]:
    """Images, then clips: transformers takes items of one number of frames at once."""
    still = [(grid, one) for grid, one in zip(grids, pixels, strict=True) if grid.frames == 1]
    moving = [(grid, one) for grid, one in zip(grids, pixels, strict=True) if grid.frames > 1]
    return tuple(([grid for grid, _ in kind], [one for _, one in kind]) for kind in (still, moving))


def test_images_through_their_whole_model(tmp_path: Path) -> None:
    """Pixels in, logits out: nothing of theirs is called apart."""
    write(tmp_path, TINY_VISION, 4)
    model, vision = theirs(tmp_path, TINY_VISION), load_vision(tmp_path)
    decoder = load_model(tmp_path, latent_norm_eps=1e-6)
    assert vision
    torch.manual_seed(4)
    grids = ITEMS["several"]
    pixels = pixels_of(grids)
    features = see(vision, grids, pixels)
    ids = torch.cat([torch.tensor([5, 6]), torch.full((len(features),), PAD), torch.tensor([7])])
    with torch.no_grad():
        out = model(ids[None], pixel_values=torch.cat(pixels), image_grid_thw=torch.tensor(grids))
        got = ours(decoder, ids, features, 2)
    assert (got - out.logits[0]).abs().max() <= 1e-4


def ours(decoder: Any, ids: Tensor, features: Tensor, start: int) -> Tensor:
    rows = torch.arange(start, start + len(features))
    attend = CausalAttention(1, len(ids))
    out: Tensor = decoder.logits(decoder(ids, torch.arange(len(ids)), attend, placed=(rows, features)))
    return out


def random_vision(seed: int) -> VisionConfig:
    """Heads, widths, depths and position tables in many proportions."""
    draw = random.Random(seed)
    heads, head_dim = draw.randint(1, 4), draw.choice([8, 16, 24, 40, 72])
    side = draw.choice([6, 8, 10, 16, 24])
    return replace(
        TINY_VISION,
        hidden_size=heads * head_dim,
        num_attention_heads=heads,
        intermediate_size=draw.choice([24, 64, 100]),
        num_hidden_layers=draw.randint(1, 4),
        # transformers stretches square tables only.
        pos_emb_height=side,
        pos_emb_width=side,
    )


def random_items(seed: int) -> dict[str, list[Grid]]:
    """Three requests of up to four images and clips, each of sides between 2 and 20 patches."""
    draw = random.Random(seed)

    def side() -> int:
        return 2 * draw.randint(1, 10)

    items = {}
    for number in range(3):
        still = [Grid(1, side(), side()) for _ in range(draw.randint(0, 3))]
        frames, rows, columns = draw.randint(2, 4), side(), side()
        # transformers takes clips of one shape at once.
        clips = [Grid(frames, rows, columns)] * draw.randint(0 if still else 1, 2)
        items[f"drawn_{number}"] = still + clips
    return items


@pytest.mark.parametrize("seed", range(12))
def test_random_towers_and_items_equal_transformers(seed: int, tmp_path: Path) -> None:
    compare(tmp_path, random_vision(seed), random_items(seed), seed)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_features_and_logits_equal_transformers(shape: str, seed: int, tmp_path: Path) -> None:
    compare(tmp_path, SHAPES[shape], ITEMS, seed)


@torch.no_grad()
def compare(folder: Path, tower: VisionConfig, items: dict[str, list[Grid]], seed: int) -> None:
    """Every item through the tower, and through the whole model among text."""
    write(folder, tower, seed)
    model = theirs(folder, tower)
    vision = load_vision(folder)
    decoder = load_model(folder, latent_norm_eps=1e-6)
    assert vision
    torch.manual_seed(seed)
    for name, grids in items.items():
        pixels = pixels_of(grids)
        features = see(vision, grids, pixels)
        assert features.std() > 0.01, name
        images, clips = (their_features(model, *kind) for kind in divided(grids, pixels))
        assert (features - torch.cat([images, clips])).abs().max() <= 1e-4, name

        before, after = torch.randint(0, 256, (2, 7))
        places = torch.tensor([PAD] * len(images) + [VIDEO_PAD] * len(clips))
        ids = torch.cat([before, places, after])
        want = their_logits(model, ids, images, clips)
        got = ours(decoder, ids, features, 7)
        assert want.abs().max() > 0.5, name
        assert (got - want).abs().max() <= 1e-4, name
