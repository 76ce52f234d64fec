"""Fuzz one target for some seconds: `python -m tests.fuzz.run config --seconds 600`.

With atheris (`make fuzz` installs it) the inputs follow what code they reach; without it they are random
damage to the seeds. Either way the memory has a bound, an input that takes longer than `--timeout` is a
finding, and a finding stops the run, is saved, and makes the exit code 1: `--replay FILE` runs it again.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

TARGETS = ("config", "index", "shard", "tokenizer", "media", "parser")
MEMORY = 1024**3
"""So much more than at the first input may be mapped."""
LONGEST_INPUT = 400_000


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("FUZZ_SECONDS", "10")))
    parser.add_argument("--timeout", type=int, default=30, help="seconds for one input")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--guided-in", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    given.findings.mkdir(parents=True, exist_ok=True)
    if given.guided_in:
        return _guided(given)
    # In memory where that is possible: every input is written to a file.
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="perilune-fuzz-", dir=shared) as name:
        if given.replay:
            return _replay(given, Path(name))
        if importlib.util.find_spec("atheris"):
            return _supervised(given, Path(name))
        return _random(given, Path(name))


def bound_memory(more: int = MEMORY) -> None:
    """What is asked for above the bound becomes a MemoryError, which is a finding."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _report(target: str, inputs: int, seconds: float, whose: int, by: str) -> None:
    used = resource.getrusage(whose)
    line = {
        "target": target,
        "inputs": inputs,
        "seconds": round(seconds),
        "cpu_seconds": round(used.ru_utime + used.ru_stime),
        "peak_mib": used.ru_maxrss >> 10,
        "by": by,
    }
    print(json.dumps(line), flush=True)


def _target(name: str) -> Any:
    from tests.fuzz.targets import TARGETS

    return TARGETS[name]


def _replay(given: argparse.Namespace, folder: Path) -> int:
    target = _target(given.target)
    target.make(folder)
    bound_memory()
    target.check(folder, given.replay.read_bytes())
    return 0


# ---- without atheris


def _random(given: argparse.Namespace, folder: Path) -> int:
    target = _target(given.target)
    target.make(folder)
    random = Random(given.seed)
    seeds = target.seeds()
    bound_memory()
    begun, inputs = time.monotonic(), 0
    while time.monotonic() < begun + given.seconds:
        data = damage(target, random, seeds)
        faulthandler.dump_traceback_later(given.timeout, exit=True, file=sys.__stderr__)
        try:
            target.check(folder, data)
        except BaseException:  # noqa: BLE001  whatever comes out is the finding
            traceback.print_exc()
            path = given.findings / f"{target.name}-{hashlib.sha1(data).hexdigest()[:16]}"
            path.write_bytes(data)
            print(f"a finding after {inputs:,} inputs, saved as {path}", file=sys.stderr)
            return 1
        faulthandler.cancel_dump_traceback_later()
        inputs += 1
    _report(given.target, inputs, time.monotonic() - begun, resource.RUSAGE_SELF, "random damage")
    return 0


def damage(target: Any, random: Random, seeds: list[bytes]) -> bytes:
    """One input: a seed, damaged once or a few times."""
    data = random.choice(seeds)
    for _ in range(random.choice((1, 1, 2, 3))):
        data = target.mutate(random, data)[:LONGEST_INPUT]
    return data


# ---- with atheris, in a process of its own: libFuzzer ends it when it is done


def _supervised(given: argparse.Namespace, folder: Path) -> int:
    log = given.findings / f"{given.target}.log"
    same = [f"--seconds={given.seconds}", f"--timeout={given.timeout}", f"--seed={given.seed}"]
    command = [sys.executable, *_warnings(), "-m", "tests.fuzz.run", given.target, *same]
    with log.open("w") as told:
        status = subprocess.call(
            [*command, f"--findings={given.findings}", f"--guided-in={folder}"], stdout=told, stderr=told
        )
    done = re.findall(r"Done (\d+) runs in (\d+) second", log.read_text(errors="replace"))
    if status or not done:
        print(f"a finding, or the run broke off: see {log}", file=sys.stderr)
        return 1
    _report(given.target, int(done[-1][0]), float(done[-1][1]), resource.RUSAGE_CHILDREN, "atheris")
    return 0


def _warnings() -> list[str]:
    return [f"-W{one}" for one in sys.warnoptions]


def _guided(given: argparse.Namespace) -> int:
    import atheris

    with atheris.instrument_imports(include=["perilune", "PIL"]):
        target = _target(given.target)
        seeds = target.seeds()
    folder, corpus = given.guided_in / "files", given.guided_in / "corpus"
    folder.mkdir()
    corpus.mkdir()
    target.make(folder)
    for number, seed in enumerate(seeds):
        (corpus / f"{number}").write_bytes(seed)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.2:
            return atheris.Mutate(data, most)
        return target.mutate(random, data)[:most]

    flags = [
        *(
            f"-max_total_time={int(given.seconds)}",
            f"-timeout={given.timeout}",
            f"-seed={given.seed % 2**31}",
        ),
        *(f"-max_len={LONGEST_INPUT}", f"-artifact_prefix={given.findings}/{given.target}-"),
        *("-rss_limit_mb=2048", "-print_final_stats=1", "-len_control=0", "-report_slow_units=5"),
    ]
    arguments = [sys.argv[0], *flags, str(corpus)]
    atheris.Setup(arguments, lambda data: target.check(folder, data), custom_mutator=mutate)
    bound_memory()
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
