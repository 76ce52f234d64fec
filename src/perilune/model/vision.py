"""MoonViT-3D and its projector: patches of one image or of up to four video frames in, embeddings out.

Parameter names are the official tensor names. An item is seen by itself: all its patches, of all its
frames, look at each other, and never at another item. Frames are averaged at the end, so a clip gives as
many embeddings as one of its frames. Source: the K2.5 checkpoint's own description (config.json and
preprocessor_config.json); checked against transformers (tests/model/test_vision_oracle.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perilune.errors import InputError
from perilune.model.rotary import rotate
from perilune.model.vision_config import VisionConfig

COLOURS = 3
MAX_SIDE = 512
"""Most patches along one edge of an item: what its preprocessing makes, and the model has seen."""
LAYER_NORM_EPS = 1e-5
ROTARY_THETA = 10000.0


class Grid(NamedTuple):
    """The shape of an item, in frames and patches."""

    frames: int
    height: int
    width: int

    @property
    def patches(self) -> int:
        return self.frames * self.height * self.width


class Vision(nn.Module):
    """Tower and projector under their official names. New parameters are torch's own random ones."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = Tower(config)
        self.mm_projector = Projector(config)

    def forward(self, pixels: Tensor, grid: Grid) -> Tensor:
        """pixels [patches, 3, p, p], normalised, frame by frame and row by row -> [tokens, text hidden].

        Raises InputError for a grid that the model cannot see.
        """
        check_grid(self.config, grid)
        out: Tensor = self.mm_projector(self.vision_tower(pixels, grid))
        return out


def check_grid(config: VisionConfig, grid: Grid) -> None:
    """Raises InputError unless an item of this shape can be seen."""
    whole = grid.height % config.merge_height == 0 and grid.width % config.merge_width == 0
    if not (1 <= grid.frames <= config.pos_emb_time):
        problem = f"has {grid.frames} frames, the model sees 1 to {config.pos_emb_time} at once"
    elif not (1 <= grid.height <= MAX_SIDE and 1 <= grid.width <= MAX_SIDE and whole):
        problem = f"is {grid.height} by {grid.width} patches"
    else:
        return
    raise InputError(
        problem,
        field="media",
        mend=f"sides are multiples of {config.merge_height} and {config.merge_width}, at most {MAX_SIDE}",
    )


def tokens_of(config: VisionConfig, grid: Grid) -> int:
    """Embeddings that an item of this shape becomes."""
    return (grid.height // config.merge_height) * (grid.width // config.merge_width)


def normalised(raw: Tensor) -> Tensor:
    """Bytes 0..255 (uint8, any shape) -> F32 in -1..1."""
    return (raw.float() / 255.0 - 0.5) / 0.5


class Tower(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.merge = (config.merge_height, config.merge_width)
        self.patch_embed = PatchEmbed(config)
        self.encoder = Encoder(config)

    def forward(self, pixels: Tensor, grid: Grid) -> Tensor:
        """-> [tokens, patches merged into one, width], frames averaged."""
        x: Tensor = self.encoder(self.patch_embed(pixels, grid), grid)
        rows, columns = self.merge
        x = x.view(grid.frames, grid.height // rows, rows, grid.width // columns, columns, -1).mean(dim=0)
        return x.transpose(1, 2).reshape(-1, rows * columns, x.shape[-1])


class PatchEmbed(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        edge = config.patch_size
        self.proj = nn.Conv2d(COLOURS, config.hidden_size, kernel_size=edge, stride=edge)
        self.pos_emb = Positions(config)

    def forward(self, pixels: Tensor, grid: Grid) -> Tensor:
        # A convolution whose stride is its kernel is a matrix product over whole patches.
        x = F.linear(
            pixels.flatten(1).to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias
        )
        out: Tensor = x + self.pos_emb(grid).to(x.dtype)
        return out


class Positions(nn.Module):
    """A learned table of places, stretched to the item's size, and a sinusoid of the frame's number."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(config.pos_emb_height, config.pos_emb_width, config.hidden_size)
        )

    def forward(self, grid: Grid) -> Tensor:
        """[patches, width] in F32."""
        size = (grid.height, grid.width)
        table = self.weight.float()
        if size != table.shape[:2]:
            stretched = F.interpolate(
                table.permute(2, 0, 1)[None], size=size, mode="bicubic", align_corners=False
            )
            table = stretched[0].permute(1, 2, 0)
        places = table.reshape(grid.height * grid.width, -1)
        if grid.frames == 1:
            return places
        # Frame 0 of a clip is not zero: it has the cosines' ones, by which a clip differs from an image.
        times = frame_sinusoids(grid.frames, places.shape[-1]).to(places)
        return (times[:, None] + places).flatten(0, 1)


def frame_sinusoids(frames: int, width: int) -> Tensor:
    """[frames, width] in F64: sines, then cosines."""
    half = width // 2
    speeds = ROTARY_THETA ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(frames, dtype=torch.float64)[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def turns_of(grid: Grid, head_width: int) -> Tensor:
    """complex64 [patches, head_width / 2]: pair 2j turns with the column, pair 2j + 1 with the row."""
    speeds = ROTARY_THETA ** -(torch.arange(0, head_width, 4, dtype=torch.float64) / head_width)
    columns = (torch.arange(grid.width)[:, None] * speeds).expand(grid.height, -1, -1)
    rows = (torch.arange(grid.height)[:, None] * speeds)[:, None].expand(-1, grid.width, -1)
    angles = torch.stack([columns, rows], dim=-1).reshape(grid.height * grid.width, -1)
    turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
    return turns.repeat(grid.frames, 1)


class Encoder(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.head_width = config.hidden_size // config.num_attention_heads
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        turns = turns_of(grid, self.head_width).to(x.device)
        for block in self.blocks:
            x = block(x, turns)
        out: Tensor = self.final_layernorm(x)
        return out


class Block(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.norm0 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.wqkv = nn.Linear(width, 3 * width)
        self.wo = nn.Linear(width, width)
        self.mlp = BlockMLP(width, config.intermediate_size)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        x = x + self.wo(self._attend(self.norm0(x), turns))
        out: Tensor = x + self.mlp(self.norm1(x))
        return out

    def _attend(self, x: Tensor, turns: Tensor) -> Tensor:
        q, k, v = self.wqkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        q, k, v = (one.transpose(0, 1)[None] for one in (rotate(q, turns), rotate(k, turns), v))
        # Never the full matrix of scores: an image may have 17,000 patches.
        seen = F.scaled_dot_product_attention(q, k, v)
        return seen[0].transpose(0, 1).flatten(1)


class BlockMLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc0 = nn.Linear(width, inner)
        self.fc1 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc1(F.gelu(self.fc0(x), approximate="tanh"))
        return out


class Projector(nn.Module):
    """Neighbouring patches to one embedding of the text model. Its GELU is the exact one."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        merged = config.hidden_size * config.merge_height * config.merge_width
        self.pre_norm = nn.LayerNorm(config.hidden_size, eps=config.projector_ln_eps)
        self.proj = nn.Sequential(
            nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, config.text_hidden_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, merged patches, width] -> [tokens, text hidden]."""
        out: Tensor = self.proj(self.pre_norm(x).flatten(1))
        return out
