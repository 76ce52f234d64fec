"""Greedy tokens of llama.cpp after prompts of token ids: JSON in, JSON out. Runs in its own environment."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from llama_cpp import Llama

F32 = 0


def continued(model: Llama, prompt: list[int], tokens: int, stops: set[int]) -> dict[str, Any]:
    """The likeliest token after the prompt, again and again, and the logarithm of its probability."""
    model.reset()
    model.eval(prompt)
    chosen: list[int] = []
    sure: list[float] = []
    while True:
        logits = np.array(model.scores[model.n_tokens - 1], dtype=np.float64)
        logits -= logits.max()
        chosen.append(int(logits.argmax()))
        sure.append(float(-np.log(np.exp(logits).sum())))
        if len(chosen) == tokens or chosen[-1] in stops:
            return {"tokens": chosen, "sure": sure}
        model.eval(chosen[-1:])


def main() -> None:
    inputs = json.load(sys.stdin)
    model = Llama(
        inputs["model"],
        n_ctx=inputs["context"],
        n_threads=1,
        n_threads_batch=1,
        type_k=F32,
        type_v=F32,
        logits_all=True,
        verbose=False,
    )
    answers = [continued(model, one, inputs["tokens"], set(inputs["stops"])) for one in inputs["prompts"]]
    texts = [model.tokenize(text.encode(), add_bos=False, special=False) for text in inputs.get("texts", ())]
    print(json.dumps({"answers": answers, "texts": texts}))


main()
