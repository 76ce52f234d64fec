"""Evaluate a checkpoint as the product runs it: engine process, grammar, agent loop, INT4 weights.

    python -m nano.evaluate --checkpoint src/perilune/nano_checkpoint

Renames: held-out files and names, one agent each, first try; right means that the file afterwards is, byte
for byte, the whole-word replacement. *Constrained* is the product; *free* decodes greedily without any
grammar. Orchestration: a swarm as a script, every twentieth sub-agent failing at first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from nano import corpus
from nano.names import Pool, files_of
from nano.orchestrate_traces import goal
from nano.rename_traces import edits
from nano.tasks import Task, by_hits, rename_tasks
from perilune.agent.calls import arguments_of
from perilune.agent.loop import (
    AnswerRecord,
    CallModel,
    Done,
    Restart,
    RestartRecord,
    RunTools,
    ToolRecord,
    apply,
    next_action,
    start,
)
from perilune.agent.profiles import bundled_profile
from perilune.agent.solo import run_agent
from perilune.agent.workspace import DirectoryWorkspace
from perilune.backends.base import Backend, complete
from perilune.backends.embedded import EmbeddedBackend
from perilune.chat.messages import ToolCall
from perilune.settings import Settings

AT_ONCE = 24
MODEL = "perilune-nano"
FAILING = 20
"""One of so many files is not done at its first assignment."""


# ---- renames


async def renames(backend: Backend, tasks: Sequence[Task]) -> dict[str, Any]:
    """Every task once."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(task: Task) -> tuple[bool, str]:
        async with room:
            return await _rename(backend, task)

    results = await asyncio.gather(*(one(task) for task in tasks))
    done = [right for right, _ in results]
    failed: list[dict[str, Any]] = [
        {"path": task.path, "instructions": task.instructions, "hits": task.hits, "said": said}
        for task, (right, said) in zip(tasks, results, strict=True)
        if not right
    ]
    return {
        "right": sum(done),
        "of": len(done),
        "by_hits": by_hits(tasks, done),
        "noticed": sum(one["said"].startswith("Failed:") for one in failed),
        "failed": failed,
    }


async def _rename(backend: Backend, task: Task) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / task.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(task.text, encoding="utf-8")
        result = await run_agent(
            backend, "rename", task.instructions, task.path, DirectoryWorkspace(Path(folder)), model=MODEL
        )
        right = result.status == "succeeded" and file.read_text(encoding="utf-8") == task.wanted
        return right, result.message


# ---- orchestration


class ScriptedSwarm:
    """Answers of a swarm whose sub-agents do everything, some at the second try."""

    def __init__(self, files: Sequence[str], page_size: int) -> None:
        self.files, self._size = list(files), page_size
        self.given: dict[str, int] = {}
        self.done: set[str] = set()
        self.wrong = 0
        self.missed: int | None = None
        """Files not done at the first status."""

    def answer(self, call: ToolCall) -> str:
        arguments = arguments_of(call)
        match call.name:
            case "list_files":
                return self._page(int(arguments["page"]))
            case "assign_task":
                return self._assign(str(arguments["prompt"]))
            case "status":
                return self._status()
            case _:
                return "ok"

    def _page(self, page: int) -> str:
        pages = -(-len(self.files) // self._size)
        if not 1 <= page <= pages:
            return f"error: no page {page}, the last is {pages}"
        shown = self.files[(page - 1) * self._size : page * self._size]
        return "\n".join([*shown, "last page" if page == pages else f"next page: {page + 1}"])

    def _assign(self, path: str) -> str:
        if path not in self.files:
            self.wrong += 1
            return f"error: no file {path}"
        self.given[path] = self.given.get(path, 0) + 1
        if self.given[path] == 1 and self.files.index(path) % FAILING == FAILING - 1:
            return "Failed: syntax error."
        self.done.add(path)
        return f"Done: {edits(len(path) % 4)}."

    def _status(self) -> str:
        left = [path for path in self.files if path not in self.done]
        if self.missed is None:
            self.missed = len(left)
        head = f"{len(self.done)} of {len(self.files)} files done"
        return "\n".join([f"{head}, {len(left)} not done:", *left[: self._size]]) if left else head


async def orchestration(backend: Backend, files: Sequence[str], text: str) -> dict[str, Any]:
    """One whole run over these files."""
    profile = bundled_profile("orchestrate-rename")
    swarm = ScriptedSwarm(files, profile.page_size)
    state = start(profile, model=MODEL, prompt=text)
    clause = ""
    while not isinstance(action := next_action(state), Done):
        match action:
            case CallModel():
                state = apply(state, AnswerRecord(await complete(backend, action.request)))
            case RunTools():
                for call in action.calls:
                    if call.name == "create_subagent":
                        clause = str(arguments_of(call)["system_prompt"])
                    answer = swarm.answer(call)
                    state = apply(state, ToolRecord(call.id, answer, ok=not answer.startswith("error:")))
            case Restart():
                state = apply(state, RestartRecord(action.reason))
    whole = len(files)
    return {
        "files": whole,
        "done": len(swarm.done),
        "clause_right": clause == text.split(" in ")[0] + ".",
        "summary_right": action.message == f"Finished: {whole} of {whole} files done.",
        "wrong_calls": swarm.wrong,
        "repeated": sum(count - 1 for count in swarm.given.values()),
        "missed_at_first_status": swarm.missed,
        "steps": state.steps,
        "restarts": state.restarts,
        "said": action.message,
    }


def orchestrations(data: corpus.Corpus, sizes: Sequence[int]) -> list[tuple[list[str], str]]:
    """(files, goal) for each size, from held-out names."""
    pool, runs = Pool.held_out(data), []
    for place, size in enumerate(sizes):
        rng = random.Random(f"orchestration-{place}")
        folder = ("src/orbit", "pkg", "lib/core", "app")[place % 4]
        names = rng.sample(list(pool.names), 2)
        runs.append((files_of(folder, size, pool, rng), goal(names[0], names[1], folder)))
    return runs


# ---- all of it


async def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    data = corpus.load(options.work / "corpus.msgpack")
    settings = Settings(
        home=options.work, checkpoint=str(options.checkpoint), threads=options.threads, dtype=options.dtype
    )
    figures: dict[str, Any] = {}
    backend = await EmbeddedBackend.start(settings)
    try:
        if backend.served.content_hash:
            figures["content_hash"] = backend.served.content_hash
        for mode in ("constrained", "free"):
            free = patch("perilune.backends.embedded.grammar_of", return_value=None)
            with free if mode == "free" else nullcontext():
                for wording in ("canonical", "held-out phrasing"):
                    begun = time.monotonic()
                    if options.only and f"{mode} {wording}" not in options.only:
                        continue
                    canonical = wording == "canonical"
                    count = options.count if canonical else min(options.count, options.phrased)
                    tasks = rename_tasks(data, count, phrased=not canonical)
                    result = await renames(backend, tasks)
                    result["seconds"] = round(time.monotonic() - begun, 1)
                    figures[f"{mode} {wording}"] = result
                    print(mode, wording, result["right"], "of", result["of"], result["by_hits"], flush=True)
        if options.sizes:
            runs = []
            for files, text in orchestrations(data, options.sizes):
                runs.append(await orchestration(backend, files, text))
                print(runs[-1], flush=True)
            figures["orchestration"] = runs
    finally:
        await backend.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("nano/work"))
    parser.add_argument("--checkpoint", type=Path, default=Path("src/perilune/nano_checkpoint"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument(
        "--phrased", type=int, default=40, help="tasks in other wordings: lost agents are slow"
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[20, 60, 60, 300])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--only", nargs="*", default=[], help="of the rename figures, as 'free canonical'")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    figures = asyncio.run(evaluate(options))
    out = options.out or options.work / "figures.json"
    if out.exists():
        earlier = json.loads(out.read_text(encoding="utf-8"))
        # Parts of one evaluation may be run apart; those of other weights are dropped.
        if earlier.get("content_hash") == figures.get("content_hash"):
            figures = {**earlier, **figures}
    out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
