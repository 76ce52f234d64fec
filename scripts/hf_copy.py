"""A checkpoint as vLLM and transformers load one without code of Moonshot's: BF16 experts, a tokenizer.json,
and, of a checkpoint without vision, the bare DeepSeek-V3 form.

    python -m scripts.hf_copy CHECKPOINT COPY [--template CHAT.jinja]

The weights are the same numbers: INT4 becomes BF16 exactly.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
from safetensors.torch import save_file
from scripts.byte_pairs import BytePairs, byte_pairs

from perilune.chat.media_rules import MediaRules, load_rules
from perilune.chat.tokenizer import PATTERN
from perilune.model.checkpoint import Checkpoint
from perilune.model.config import CONFIG_NAME, parse_config, read_config
from perilune.model.convert import convert
from perilune.model.headers import INDEX_NAME
from perilune.model.shards import write_json
from perilune.model.vision_config import VisionConfig, parse_vision

OURS = ("tiktoken.model", "perilune.json", "MODEL_CARD.md", "checkpoint.sha256")
NO_STRETCH = {
    "type": "yarn",
    "factor": 1.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
"""The rotary positions of a model without scaling, as a scaling by 1: the same angles. vLLM's CPU operator
for plain positions turns the queries of several heads wrongly (0.32; tests/peers shows it)."""


def write_hf(folder: Path, copy: Path, template: str = "") -> None:
    """Raises what `perilune checkpoint convert` and `load_rules` raise, and TokenizerError."""
    document = read_config(folder)
    vision = parse_vision(document, parse_config(document))
    tokens = byte_pairs(folder)
    convert(folder, copy, "bf16")
    for name in OURS:
        (copy / name).unlink(missing_ok=True)
    if vision is None:
        _bare(copy)
    else:
        _seeing(copy, vision, load_rules(folder))
    write_json(copy / "tokenizer.json", tokenizer_document(tokens))
    write_json(copy / "tokenizer_config.json", _tokenizer_config(tokens))
    ids = {"bos_token_id": tokens.bos, "eos_token_id": tokens.eos, "pad_token_id": tokens.pad}
    write_json(copy / "generation_config.json", ids)
    if template:
        (copy / "chat_template.jinja").write_text(template, encoding="utf-8")


def _bare(copy: Path) -> None:
    """The text model alone, under K2's names."""
    checkpoint = Checkpoint.open(copy)
    tensors = {name: checkpoint.get(name).clone() for name in checkpoint.entries}
    for stored in (copy / INDEX_NAME, *copy.glob("*.safetensors")):
        stored.unlink()
    save_file(tensors, copy / "model.safetensors")
    text = read_config(copy)["text_config"]
    if text["rope_scaling"] is None:
        text["rope_scaling"] = NO_STRETCH | {
            "original_max_position_embeddings": text["max_position_embeddings"]
        }
    write_json(copy / CONFIG_NAME, text | {"model_type": "deepseek_v3"})


def _seeing(copy: Path, vision: VisionConfig, rules: MediaRules) -> None:
    """transformers reads none of the official names in `vision_config`: it relies on K2.6's values."""
    document = read_config(copy)
    shape = asdict(vision) | {"merge_kernel_size": [vision.merge_height, vision.merge_width]}
    document |= {
        "text_config": document["text_config"] | {"model_type": "deepseek_v3"},
        "vision_config": document["vision_config"] | shape,
        "projection_hidden_size": vision.hidden_size,
        "projection_layer_norm_eps": vision.projector_ln_eps,
        "image_token_id": document["media_placeholder_token_id"],
        "video_token_id": document["media_placeholder_token_id"],
        "use_unified_vision_chunk": True,
    }
    write_json(copy / CONFIG_NAME, document)
    write_json(copy / "preprocessor_config.json", {"media_proc_cfg": msgspec.to_builtins(rules)})


# ---- the tokenizer


def tokenizer_document(tokens: BytePairs) -> dict[str, Any]:
    """tokenizer.json of the `tokenizers` package."""
    added = [
        {
            "id": token,
            "content": tokens.tokens[token],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token not in tokens.shown,
        }
        for token in range(tokens.text_tokens, len(tokens.tokens))
    ]
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, letters]},
        "post_processor": None,
        "decoder": letters,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {token: number for number, token in enumerate(tokens.tokens[: tokens.text_tokens])},
            "merges": [list(pair) for pair in tokens.merges],
        },
    }


def _tokenizer_config(tokens: BytePairs) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens.tokens[tokens.bos],
        "eos_token": tokens.tokens[tokens.eos],
        "pad_token": tokens.tokens[tokens.pad],
        "clean_up_tokenization_spaces": False,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Copy a checkpoint into a form that vLLM loads by itself.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("copy", type=Path)
    parser.add_argument("--template", type=Path, help="chat template to put into it")
    given = parser.parse_args()
    write_hf(given.checkpoint, given.copy, given.template.read_text() if given.template else "")


if __name__ == "__main__":
    main()
