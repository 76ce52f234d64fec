"""The layout that make, convert and inspect go by, against the model classes of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from perilune.model.attention import CausalAttention
from perilune.model.convert import convert
from perilune.model.inspection import inspect
from perilune.model.load import load_model
from perilune.model.make import make_checkpoint
from perilune.model.shapes import SHAPES, TINY_VISION

pytestmark = [
    pytest.mark.oracle,
    # What other packages warn about while they import and build is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]


def test_a_made_and_converted_checkpoint_loads_whole_in_transformers(tmp_path: Path) -> None:
    """Text, vision tower and projector: no tensor missing, none unexpected, none of another shape."""
    kimi = pytest.importorskip("transformers.models.kimi_k25")
    document = SHAPES["tiny"]()
    make_checkpoint(document, tmp_path / "int4", shard_bytes=100_000)
    convert(tmp_path / "int4", tmp_path / "bf16", "bf16", shard_bytes=100_000)
    vision = TINY_VISION
    text = {name: value for name, value in document["text_config"].items() if name != "quantization_config"}
    # transformers knows the sizes under names of its own, and takes full-size ones where it misses them.
    config = kimi.Kimi_K25Config(
        text_config=text,
        vision_config={
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "pos_emb_height": vision.pos_emb_height,
            "pos_emb_width": vision.pos_emb_width,
            "pos_emb_time": vision.pos_emb_time,
            "patch_size": vision.patch_size,
        },
        projection_hidden_size=vision.hidden_size,
        tie_word_embeddings=False,
    )
    oracle, report = kimi.Kimi_K25ForConditionalGeneration.from_pretrained(
        tmp_path / "bf16", config=config, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(parameter.numel() for parameter in oracle.parameters()) == _without_buffers(tmp_path / "bf16")
    ids = torch.arange(40)
    ours = load_model(tmp_path / "int4", latent_norm_eps=1e-6)
    with torch.no_grad():
        want = oracle(input_ids=ids[None]).logits[0]
        got = ours.logits(ours(ids, ids, CausalAttention(1, 40)))
    assert (got - want).abs().max() < 1e-4


def _without_buffers(folder: Path) -> int:
    """Parameters, less the selection biases, which transformers counts as buffers."""
    seen = inspect(folder)
    return seen.parameters - len(seen.config.moe_layers) * seen.config.n_routed_experts
