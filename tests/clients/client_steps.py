"""What the Python clients' programs share: inputs from stdin, one result a step, all of it as JSON to stdout.

Runs in the clients' own environment, where Perilune is not installed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
        },
    },
}
OFF = {"thinking": {"type": "disabled"}}
Inputs = Mapping[str, Any]
Step = Callable[[Inputs], Any]


def run_steps(steps: Mapping[str, Step]) -> None:
    inputs = json.load(sys.stdin)
    seen: dict[str, Any] = {}
    for name in inputs["steps"]:
        try:
            seen[name] = steps[name](inputs)
        except Exception as error:  # noqa: BLE001  the test that asks for this step fails with it
            seen[name] = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(seen))


def failure(act: Callable[[], Any]) -> dict[str, Any] | None:
    """What a call raises, as the client's user sees it; None when it does not."""
    try:
        act()
    except Exception as error:  # noqa: BLE001  its class is what is asked for
        bases = [base.__name__ for base in type(error).__mro__]
        return {
            "kind": bases[0],
            "bases": bases,
            "status": getattr(error, "status_code", None),
            "message": str(error),
        }
    return None


def image_message(image: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "What is it?"}]
    return [{"role": "user", "content": parts}]
