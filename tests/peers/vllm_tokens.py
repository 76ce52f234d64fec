"""Greedy tokens of vLLM after prompts of token ids: JSON in, JSON out. Runs in its own environment."""

from __future__ import annotations

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

from vllm import LLM, SamplingParams  # noqa: E402  reads the environment


def answer(output: Any) -> dict[str, Any]:
    (said,) = output.outputs
    sure = [likely[token].logprob for token, likely in zip(said.token_ids, said.logprobs, strict=True)]
    return {"tokens": list(said.token_ids), "sure": sure}


def main(inputs: dict[str, Any]) -> None:
    options = {"attention_backend": "CPU_MLA"} if inputs["latent"] else {}
    model = LLM(
        inputs["model"],
        dtype="float32",
        skip_tokenizer_init=True,
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
    prompts = [{"prompt_token_ids": prompt} for prompt in inputs["prompts"]]
    outputs = model.generate(prompts, wanted, use_tqdm=False)
    print(json.dumps({"answers": [answer(output) for output in outputs]}))


main(INPUTS)
