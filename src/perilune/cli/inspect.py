"""`perilune inspect`: what a checkpoint is, what it needs, and whether it is whole."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from perilune.cli.flags import Commands
from perilune.errors import CheckpointError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perilune.model.inspection import Inspection, Problem

SHOWN_OF_A_KIND = 10
SOURCES = {
    "files": "read from the files' heads",
    "index": "from the index and config.json, the files are not here",
    "config": "what config.json implies, there are no files here",
}
WHOLE = {
    "files": "yes: every tensor is there, in the right shape",
    "index": "by its index, yes: every tensor is named; shapes are in the files",
    "config": "not known: there is no index and no file to compare with",
}


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "inspect",
        help="what a checkpoint is: size, parameters, cache, and every tensor that is wrong",
        description="Reads a checkpoint's config, index and file heads; no weights, no torch. Exit code 5 "
        "when a tensor is missing, extra, mis-shaped or truncated.",
    )
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="a folder, its index, or a config.json taken alone"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every problem")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    from perilune.model.inspection import inspect
    from perilune.model.inspection_json import json_pieces, told, without_problems

    seen = inspect(given.path)
    if given.json:
        sys.stdout.writelines(json_pieces(without_problems(seen), "problems", map(told, seen.problems)))
    else:
        print("\n".join(lines(seen)))
        print("\n".join(problem_lines(seen.problems)), end="\n" if seen.problems else "")
    if seen.problems:
        print(f"perilune: {given.path}: {summary(seen.problems)}", file=sys.stderr)
        return CheckpointError.exit_code
    return 0


def lines(seen: Inspection) -> Iterator[str]:
    """The report for people."""
    config = seen.config
    dense = config.num_hidden_layers - len(config.moe_layers)
    yield f"Checkpoint    {seen.path} ({SOURCES[seen.source]})"
    yield (
        f"Architecture  {seen.model_type}: {config.num_hidden_layers} layers ({dense} dense), width "
        f"{config.hidden_size}, {config.num_attention_heads} heads, latent {config.latent_width}"
    )
    yield (
        f"Experts       {config.n_routed_experts} per layer, {config.num_experts_per_tok} chosen, "
        f"{config.n_shared_experts} shared, width {config.moe_intermediate_size}; stored as "
        f"{seen.experts_stored}"
    )
    if seen.vision:
        yield (
            f"Vision        {seen.vision.num_hidden_layers} blocks, width {seen.vision.hidden_size}, patches "
            f"of {seen.vision.patch_size} px"
        )
    yield f"Parameters    {seen.parameters:,} in all, {seen.active_parameters:,} active per token"
    yield f"Stored        {seen.tensors:,} tensors, {seen.nbytes:,} bytes ({sized(seen.nbytes)})"
    for name, part in sorted(seen.parts.items(), key=lambda item: -item[1].nbytes):
        yield f"              {part.nbytes:>19,}  {name} ({part.tensors:,} tensors)"
    yield (
        f"Cache         {seen.cache_bytes_per_token:,} bytes a token, {sized(seen.cache_bytes)} at "
        f"{config.max_position_embeddings:,} tokens (BF16)"
    )
    if seen.problems:
        yield f"Whole         NO: {summary(seen.problems)}"
    else:
        yield f"Whole         {WHOLE[seen.source]}"


def problem_lines(problems: tuple[Problem, ...]) -> Iterator[str]:
    told: Counter[str] = Counter()
    for problem in problems:
        told[problem.kind] += 1
        if told[problem.kind] <= SHOWN_OF_A_KIND:
            yield f"  {problem.kind:<10} {shown(problem.name)}: {problem.detail}"
    for kind, count in told.items():
        if count > SHOWN_OF_A_KIND:
            yield f"  {kind:<10} and {count - SHOWN_OF_A_KIND:,} more (--json lists all)"


def summary(problems: tuple[Problem, ...]) -> str:
    counts = Counter(problem.kind for problem in problems)
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())


def sized(count: int) -> str:
    """Bytes for people, in powers of ten as disks are sold."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count / 1e3:,.1f} kB"
