"""From a checkpoint folder to a vision tower that can run."""

from __future__ import annotations

from pathlib import Path

import torch

from perilune.model.checkpoint import Checkpoint
from perilune.model.config import parse_config, read_config
from perilune.model.mapped_experts import FLOATS
from perilune.model.vision import Vision
from perilune.model.vision_config import parse_vision


def load_vision(
    folder: Path | str, dtype: torch.dtype = torch.float32, *, device: torch.device | str = "cpu"
) -> Vision | None:
    """Tower and projector in evaluation mode; None where config.json describes none.

    Raises CheckpointError naming file, field or tensor.
    """
    folder = Path(folder)
    document = read_config(folder)
    config = parse_vision(document, parse_config(document))
    if config is None:
        return None
    checkpoint = Checkpoint.open(folder)
    with torch.device("meta"):
        vision = Vision(config)
    state = {
        name: checkpoint.get(name, tuple(want.shape), FLOATS).to(device, dtype, copy=True)
        for name, want in vision.state_dict().items()
    }
    vision.load_state_dict(state, assign=True)
    return vision.requires_grad_(False).eval()
