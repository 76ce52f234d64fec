"""Held-out rename tasks: real files of packages that training never saw, names that it never saw."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from nano.corpus import Corpus, Record
from nano.names import Pool, new_name
from nano.rename_traces import instructions
from perilune.agent.tools.rename import parses, word_pattern

PHRASINGS = (
    "Change {old} so that its name is {new}.",
    "The name {old} must become {new} everywhere in this file.",
    "Please use {new} instead of {old} from now on.",
    "We do not like the name {old}, make it {new}.",
)
"""Wordings that the model was not trained on. None works; the figure says so."""


@dataclass(frozen=True)
class Task:
    path: str
    text: str
    wanted: str
    """The file after a perfect rename."""
    instructions: str
    hits: int


def rename_tasks(corpus: Corpus, count: int, *, seed: int = 11, phrased: bool = False) -> list[Task]:
    """The same tasks for the same corpus, count and seed; with `phrased`, in other wordings."""
    rng = random.Random(f"tasks-{seed}")
    pool = Pool.held_out(corpus)
    records: list[Record] = [record for record in corpus.held_records if parses(record.text)]
    rng.shuffle(records)
    tasks = []
    for record in records:
        new = new_name(record.name, pool, rng)
        wanted = word_pattern(record.name).sub(new, record.text)
        # The product refuses such goals before anything is spent.
        if word_pattern(new).search(record.text) or not parses(wanted):
            continue
        told = rng.choice(PHRASINGS).format(old=record.name, new=new)
        text = told if phrased else instructions(record.name, new)
        tasks.append(Task(record.path, record.text, wanted, text, len(record.hits)))
        if len(tasks) == count:
            return tasks
    raise SystemExit(f"the corpus holds only {len(tasks)} held-out tasks, {count} were asked for")


def by_hits(tasks: Sequence[Task], done: Sequence[bool]) -> dict[str, list[int]]:
    """{hits: [done, all]} with the larger counts together."""
    figures: dict[str, list[int]] = {}
    for task, success in sorted(zip(tasks, done, strict=True), key=lambda pair: pair[0].hits):
        key = str(task.hits) if task.hits < 3 else "3-4" if task.hits < 5 else "5-9"
        entry = figures.setdefault(key, [0, 0])
        entry[0] += success
        entry[1] += 1
    return figures
