"""Tensor names: the official ones, and the forms in which re-exports store them. Imports no torch.

Perilune calls text tensors as K2 does (`model.layers...`, `lm_head.weight`) and leaves the vision tower's
and the projector's names as they are. Stored names differ in their beginnings only:

    language_model.model.layers...    K2.5 and K2.6
    model.layers...                   K2, K2-Thinking, DeepSeek-V3
    language_model.layers...          older NVFP4 exports
    model.language_model.layers...    transformers 5; its `lm_head` has no beginning
    model.vision_tower... model.mm_projector...
"""

from __future__ import annotations

import re

PREFIX = "language_model."
VISION_PREFIXES = ("vision_tower.", "mm_projector.")
_OUTER = re.compile(r"model\.(?=language_model\.|vision_tower\.|mm_projector\.)")
_TRUNK = re.compile(r"(?:layers|embed_tokens|norm)\.")
_BUFFERS = re.compile(
    r"rotary_emb\.(?:inv_freq|cos_cached|sin_cached)$|^vision_tower\.patch_embed\.pos_emb\.time_weight$"
)


def plain_name(stored: str) -> str:
    """The one name by which a tensor is asked for, whichever way it is stored."""
    name = stored[len("model.") :] if _OUTER.match(stored) else stored
    if not name.startswith(PREFIX):
        return name
    name = name.removeprefix(PREFIX)
    return f"model.{name}" if _TRUNK.match(name) else name


def official_name(plain: str) -> str:
    """As K2.5 and K2.6 store it."""
    return plain if plain.startswith(VISION_PREFIXES) else f"{PREFIX}{plain}"


def is_computed(plain: str) -> bool:
    """Tables that are computed from the config; some exports store them, nobody needs them."""
    return _BUFFERS.search(plain) is not None
