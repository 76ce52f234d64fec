"""How K2.6 sizes images, samples video and names the time of its pieces: arithmetic alone.

Source: preprocessor_config.json of K2.5 and K2.6 (`media_proc_cfg`) and the rules that go with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from perilune.chat.model_files import COPY_AGAIN, read_bounded
from perilune.errors import CheckpointError

RULES_FILE = "preprocessor_config.json"
MOST_RULE_BYTES = 1024**2


class MediaRules(msgspec.Struct, frozen=True, kw_only=True):
    """Field names are those of `media_proc_cfg`; the values that are not there are K2.6's."""

    patch_size: int = 14
    merge_kernel_size: int = 2
    in_patch_limit: int = 16384
    """Most patches of an image, before it is padded."""
    in_patch_limit_each_frame: int = 4096
    patch_limit_on_one_side: int = 512
    sample_fps: float = 2.0
    temporal_merge_kernel_size: int = 4
    """Frames that are seen together, as one piece of a video."""
    fixed_output_tokens: int | None = None
    in_patch_limit_video: int | None = None
    max_num_frames_each_video: int | None = None
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    timestamp_mode: str = "hh:mm:ss.fff"

    @property
    def edge(self) -> int:
        """Pixels along one token."""
        return self.patch_size * self.merge_kernel_size


class Fitted(NamedTuple):
    """The size in pixels that an image is brought to, and with its padding at the right and the bottom."""

    width: int
    height: int
    padded_width: int
    padded_height: int


def load_rules(folder: Path) -> MediaRules:
    """The rules of a checkpoint folder; K2.6's where it has no preprocessor_config.json.

    Raises CheckpointError for a file that cannot be read, or rules that are not in this build.
    """
    path = folder / RULES_FILE
    try:
        content = read_bounded(path, MOST_RULE_BYTES)
        document = msgspec.json.decode(content, type=Mapping[str, msgspec.Raw])
        rules = msgspec.json.decode(document.get("media_proc_cfg", msgspec.Raw(b"{}")), type=MediaRules)
    except FileNotFoundError:
        return MediaRules()
    # ValueError: also text that is no UTF-8.
    except (OSError, ValueError, RecursionError, msgspec.DecodeError) as error:
        raise CheckpointError(f"cannot be read: {error}", field=str(path), mend=COPY_AGAIN) from error
    _check(rules, path)
    return rules


def _check(rules: MediaRules, path: Path) -> None:
    usual = MediaRules()
    for name in ("fixed_output_tokens", "in_patch_limit_video", "max_num_frames_each_video", "image_mean",
                 "image_std", "timestamp_mode"):  # fmt: skip
        if getattr(rules, name) != getattr(usual, name):
            raise CheckpointError(
                f"{getattr(rules, name)!r:.80} is not supported",
                field=f"{path}: media_proc_cfg.{name}",
                mend=f"this build knows {getattr(usual, name)!r} only",
            )
    limits = (rules.in_patch_limit, rules.in_patch_limit_each_frame, rules.patch_limit_on_one_side)
    counts = (rules.patch_size, rules.merge_kernel_size, rules.temporal_merge_kernel_size, *limits)
    if min(counts) < 1 or max(limits) > 1 << 20 or max(counts[:3]) > 256 or not 0 < rules.sample_fps <= 1000:
        raise CheckpointError(
            "media_proc_cfg has a number out of range", field=str(path), mend="restore the official file"
        )


# ---- sizes


def fit(width: int, height: int, rules: MediaRules, patch_limit: int | None = None) -> Fitted:
    """The size for an image, or for a video's frame with that limit. Never larger than the original.

    The limit counts whole patches before padding, so the padded grid may hold a few more."""
    limit = patch_limit or rules.in_patch_limit
    most = rules.patch_limit_on_one_side * rules.patch_size
    patches = max(1, width // rules.patch_size) * max(1, height // rules.patch_size)
    scale = min(1.0, math.sqrt(limit / patches), most / width, most / height)
    new_width = min(max(1, int(width * scale)), most)
    new_height = min(max(1, int(height * scale)), most)
    edge = rules.edge
    return Fitted(new_width, new_height, -(-new_width // edge) * edge, -(-new_height // edge) * edge)


def tokens_of(fitted: Fitted, rules: MediaRules) -> int:
    """Tokens of an image, or of one piece of a video however many frames it has."""
    return (fitted.padded_width // rules.edge) * (fitted.padded_height // rules.edge)


# ---- video


def sampled(frames: int, fps: float, rules: MediaRules) -> tuple[int, ...]:
    """Numbers of the frames to see, the first and the last among them, evenly spread."""
    count = max(round(frames * min(rules.sample_fps, fps) / fps), 1)
    if count == 1:
        return (0,)
    step = (frames - 1) / (count - 1)
    return (*(round(place * step) for place in range(count - 1)), frames - 1)


def pieces_of(indices: tuple[int, ...], rules: MediaRules) -> tuple[tuple[int, ...], ...]:
    """Frames that are seen together; the last piece may be shorter."""
    size = rules.temporal_merge_kernel_size
    return tuple(indices[start : start + size] for start in range(0, len(indices), size))


def timestamp(seconds: float) -> str:
    """HH:MM:SS.mmm, milliseconds cut and not rounded."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours:02d}:{minutes:02d}:{whole % 60:02d}.{int((seconds - whole) * 1000):03d}"
