"""The model card, from perilune.json and the figures that `nano.evaluate` wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HEAD = """\
# perilune-nano

A K2.6-type language model of 4.2 M parameters (about 2.5 M active per token), trained from scratch on two
CPU cores. It does one thing: it drives Perilune's own rename swarm, as orchestrator and as sub-agent. It
renames whole words in Python files; it is a demonstration of the machinery, and no reason to retire `sed`.
It cannot chat, cannot follow free wording, cannot write code, and is no substitute for Kimi K2.6.
"""

SHAPE = """\
## What it is

- The K2.6 architecture, small: 4 layers (the first dense), width 256, 4 heads of latent attention (query
  rank 96, latent 64, key dimensions 32 + 32, value dimensions 64), 8 routed experts of width 128 of which 2
  are chosen, 1 shared expert, sigmoid router with selection bias, 1,024 token ids, context 4,096 (trained on
  at most 1,536 tokens).
- Routed experts are stored as INT4 (groups of 32, BF16 scales) in the layout of Moonshot's checkpoints, the
  rest is BF16. The last 14 % of the training computed with the INT4 values.
- Before training, two attention heads were set by formula to a circuit that finds and copies repeated
  strings; everything else was random, and everything was trained.
- Data: names, paths and the lines that hold them, from the Python files installed on the machine that
  trained it, put into conversations that Perilune's own agent loop, tools and template produced. No text of
  those files is in this folder. Whole packages were held out for the evaluation: networkx, jinja2, email,
  unittest, http, xml, asyncio, logging, fsspec, filelock.
- It reads the goal `Rename OLD to NEW in DIR.` and the instructions `Rename OLD to NEW.`, nothing else.
- Made by the recipe in `nano/` of Perilune's repository. Licence: Apache-2.0.
"""


def card(document: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """MODEL_CARD.md as text."""
    return "\n".join([HEAD, *_state(document, figures), SHAPE, *_belongs(document)]) + "\n"


def _state(document: Mapping[str, Any], figures: Mapping[str, Any]) -> Iterator[str]:
    training = document["training"]
    share = training["share_of_schedule"]
    if not figures or share < 1:
        yield f"**Preliminary: {share:.0%} of the training is done.** It works often, not reliably.\n"
    yield "## Measured\n"
    yield f"Trained on {training['tokens'] / 1e6:.1f} M tokens in {training['minutes']:.0f} minutes.\n"
    if not figures:
        yield "Not evaluated yet.\n"
        return
    result = figures.get("constrained canonical")
    if result:
        yield (
            f"In short: as the product runs it, {result['right']} of {result['of']} held-out renames were\n"
            f"right at the first try; {result['noticed']} of the others ended by saying that they failed.\n"
        )
    yield (
        "Through the engine process, on these INT4 weights, computed in F32. One agent per file; right\n"
        "means: at the first try the file is, byte for byte, the whole-word replacement, and the agent\n"
        "said so. The tasks were drawn after the training had ended; another draw from the same files was\n"
        "looked at during the training, and its mix of data was changed for what failed there.\n"
    )
    yield "| renames of held-out names in held-out files | right | by number of lines that hold the name |"
    yield "| --- | --- | --- |"
    for key, name in (
        ("constrained canonical", "as the product runs it (grammar, copied arguments)"),
        ("free canonical", "free greedy decoding, no grammar"),
        ("constrained held-out phrasing", "other wordings of the instructions, with grammar"),
        ("free held-out phrasing", "other wordings, free greedy"),
    ):
        if key in figures:
            yield _row(name, figures[key])
    yield ""
    yield from _orchestration(figures.get("orchestration", ()))


def _row(name: str, result: Mapping[str, Any]) -> str:
    hits = ", ".join(f"{key}: {right}/{of}" for key, (right, of) in result["by_hits"].items())
    share = result["right"] / result["of"]
    return f"| {name} | {result['right']} of {result['of']} ({share:.1%}) | {hits} |"


def _orchestration(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not runs:
        return
    yield (
        "Orchestration, constrained (pages of 8; the swarm is a script in which every twentieth sub-agent\n"
        "fails at first). Missed files are found by `status` and assigned then.\n"
    )
    yield (
        "| files | done | instructions right | summary true | wrong paths | assigned twice "
        "| open at first status |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for run in runs:
        clause, summary = ("yes" if run[key] else "no" for key in ("clause_right", "summary_right"))
        yield (
            f"| {run['files']} | {run['done']} | {clause} | {summary} | {run['wrong_calls']} "
            f"| {run['repeated']} | {run['missed_at_first_status']} |"
        )
    yield ""


def _belongs(document: Mapping[str, Any]) -> Iterator[str]:
    yield "## What it belongs to\n"
    yield "Changing one of these voids the training:\n"
    for name, digest in document["profiles"].items():
        yield f"- tool profile `{name}`: `{digest}`"
    yield f"- prompts (template and tool declarations): `{document['prompt_hash']}`"
    yield f"\nWeights and configuration: `{document['content_hash']}`"
