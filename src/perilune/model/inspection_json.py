"""What an inspection found, as JSON for programs. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from perilune.model.inspection import Inspection, Problem


def as_json(seen: Inspection) -> dict[str, Any]:
    """One JSON object; the keys are a promise."""
    return without_problems(seen) | {"problems": [told(one) for one in seen.problems]}


def json_pieces(document: dict[str, Any], name: str, entries: Iterable[object]) -> Iterator[str]:
    """The text of `document`, which is not empty, with a list `name` as its last field, one entry at a time:
    a config of a few bytes can imply two million tensors that are not there."""
    yield json.dumps(document, indent=2).removesuffix("\n}")
    yield f',\n  "{name}": ['
    between = "\n    "
    for entry in entries:
        yield f"{between}{json.dumps(entry)}"
        between = ",\n    "
    yield "\n  ]\n}\n"


def told(problem: Problem) -> dict[str, str]:
    return {"kind": problem.kind, "name": problem.name, "detail": problem.detail}


def without_problems(seen: Inspection) -> dict[str, Any]:
    config = seen.config
    return {
        "path": str(seen.path),
        "source": seen.source,
        "ok": not seen.problems,
        "model_type": seen.model_type,
        "architecture": {
            name: value for name, value in vars(config).items() if isinstance(value, (int, float))
        }
        | {"yarn": vars(config.yarn) if config.yarn else None},
        "experts_stored": seen.experts_stored,
        "vision": vars(seen.vision) if seen.vision else None,
        "parameters": {"total": seen.parameters, "active": seen.active_parameters},
        "tensors": seen.tensors,
        "bytes": seen.nbytes,
        "parts": {
            name: {"tensors": part.tensors, "parameters": part.parameters, "bytes": part.nbytes}
            for name, part in seen.parts.items()
        },
        "cache": {
            "bytes_per_token": seen.cache_bytes_per_token,
            "context": config.max_position_embeddings,
            "bytes": seen.cache_bytes,
        },
    }
