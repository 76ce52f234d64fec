"""`perilune doctor`: what this machine has, what is missing, and the mend for each."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from perilune.cli.flags import Commands, add_settings, add_unsandboxed, load_settings
from perilune.errors import CheckpointError, StoreError

if TYPE_CHECKING:
    from perilune.settings import Settings

OLDEST_PYTHON = (3, 11)
OLDEST_GIT = (2, 38)
LEAST_MEMORY = 2 * 1024**3
LEAST_DISK = 1024**3
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_int8", "asimd")
ENGINE = ("torch", "safetensors", "numpy", "llguidance")
INSTALL_ENGINE = "pip install 'perilune[engine]', or perilune connect URL"
MARKS = {"ok": "ok     ", "warn": "note   ", "fail": "MISSING"}


@dataclass(frozen=True)
class Check:
    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    mend: str = ""


def add(commands: Commands) -> None:
    parser = commands.add_parser("doctor", help="check this machine: what is there, what is missing")
    add_settings(parser, "checkpoint")
    add_unsandboxed(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    checks = examine(load_settings(given))
    failed = [check for check in checks if check.state == "fail"]
    if given.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=2))
        return 1 if failed else 0
    for check in checks:
        mend = f" ({check.mend})" if check.mend else ""
        print(f"{MARKS[check.state]}  {check.name:<11} {check.detail}{mend}")
    if failed:
        names = ", ".join(check.name for check in failed)
        print(
            f"perilune: this machine lacks what Perilune needs: {names} (mend as said above)", file=sys.stderr
        )
    return 1 if failed else 0


def examine(settings: Settings) -> list[Check]:
    """All checks, in the order in which they are best mended."""
    return [
        check_python(),
        check_cpu(),
        check_memory(),
        check_git(),
        check_sandbox(settings),
        check_engine(settings),
        check_model(settings),
        check_disk(settings.home),
        check_home(settings.home),
    ]


def check_python() -> Check:
    detail = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        return Check("Python", "fail", detail, "install Python 3.11 or later")
    return Check("Python", "ok", detail)


def check_cpu() -> Check:
    flags = set(re.findall(r"\w+", _first_line("/proc/cpuinfo", r"^(?:flags|Features)\s*:(.*)$")))
    found = [name for name in CPU_FEATURES if name in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check(
        "CPU", "ok", f"{platform.machine()}, {cores} cores, {' '.join(found) or 'no vector features known'}"
    )


def check_memory() -> Check:
    from perilune.model.memory import free_memory, meminfo

    total, free = meminfo("MemTotal"), free_memory()
    if total is None or free is None:
        return Check("memory", "warn", "not known on this system")
    detail = f"{_gb(free)} free of {_gb(total)}"
    if free < LEAST_MEMORY:
        return Check("memory", "warn", detail, f"the engine wants {_gb(LEAST_MEMORY)}: close something")
    return Check("memory", "ok", detail)


def check_git() -> Check:
    try:
        done = subprocess.run(["git", "--version"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return Check("git", "fail", "not installed", "install git 2.38 or later")
    found = re.search(r"(\d+)\.(\d+)\S*", done.stdout)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_GIT:
        return Check("git", "fail", done.stdout.strip() or "no version", "install git 2.38 or later")
    return Check("git", "ok", found[0])


def check_sandbox(settings: Settings) -> Check:
    from perilune.agent.sandbox import probe_machine

    probe = probe_machine()
    if probe.kind != "none":
        return Check("sandbox", "ok" if probe.overlay else "warn", probe.reason, probe.mend)
    if settings.unsandboxed:
        return Check("sandbox", "warn", f"NONE, commands of agents run freely: {probe.reason}", probe.mend)
    mend = f"{probe.mend}; or set PERILUNE_UNSANDBOXED=true and trust the model with this machine"
    return Check("sandbox", "fail", probe.reason, mend)


def check_engine(settings: Settings) -> Check:
    missing = [name for name in ENGINE if find_spec(name) is None]
    embedded = any(table.get("engine") == "embedded" for table in settings.backends)
    if missing and (settings.model_url or settings.backends) and not embedded:
        return Check("engine", "ok", "not installed, and not needed: a model is connected")
    if missing:
        return Check("engine", "fail", f"not installed: {', '.join(missing)}", INSTALL_ENGINE)
    try:
        torch = import_module("torch")
    except (ImportError, OSError) as error:
        return Check("engine", "fail", f"torch does not load: {error}", "install torch again")
    return Check("engine", "ok", f"torch {torch.__version__}, {torch.get_num_threads()} threads")


def check_model(settings: Settings) -> Check:
    if settings.backends:
        names = ", ".join(str(table.get("name", "unnamed")) for table in settings.backends)
        return Check("model", "ok", f"served by the backends {names}")
    if settings.model_url:
        return Check("model", "ok", f"{settings.model_name or 'unnamed'} at {settings.model_url}")
    from perilune.backends.served import bundled_folder
    from perilune.model.content_hash import content_hash

    folder = Path(settings.checkpoint) if settings.checkpoint else bundled_folder()
    if not (folder / "config.json").is_file():
        return Check("model", "fail", f"no checkpoint in {folder}", "perilune connect URL")
    try:
        identity = content_hash(folder)
        entry = json.loads((folder / "perilune.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Check("model", "ok", f"{folder.name}, sha256 {identity[:16]}")
    except (CheckpointError, OSError, ValueError) as error:
        return Check("model", "fail", str(error))
    listed = entry.get("content_hash", identity)
    if listed != identity:
        return Check(
            "model", "fail", f"{folder} does not match its perilune.json", "copy the whole folder again"
        )
    return Check("model", "ok", f"{entry.get('id', folder.name)}, sha256 {identity[:16]}")


def check_disk(home: Path) -> Check:
    place = next(folder for folder in (home, *home.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < LEAST_DISK:
        return Check(
            "disk",
            "fail",
            f"{_gb(free)} free for {home}",
            f"free {_gb(LEAST_DISK)}, or choose another --home",
        )
    return Check("disk", "ok", f"{_gb(free)} free")


def check_home(home: Path) -> Check:
    from perilune.store import home_holder

    place = next(folder for folder in (home, *home.parents) if folder.is_dir())
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("home", "fail", f"{place} cannot be written", "choose another with --home")
    try:
        holder = home_holder(home)
    except OSError as error:
        return Check("home", "fail", f"{home}: {error.strerror}", "choose another with --home")
    except StoreError as error:
        return Check("home", "fail", str(error))
    if shown := _shown_to_others(home):
        return Check("home", "warn", f"others can read {', '.join(map(str, shown))}", f"chmod -R go= {home}")
    if holder is not None:
        at = f" at {holder.address}" if holder.address else ""
        return Check("home", "ok", f"{home}, in use by process {holder.pid} (perilune {holder.purpose}){at}")
    return Check("home", "ok", f"{home}, {'in use by nobody' if home.is_dir() else 'made at first use'}")


def _shown_to_others(home: Path) -> list[Path]:
    """What in HOME holds keys, prompts or prices and has more readers than its owner. Nobody reaches it where
    HOME itself is closed."""
    if not home.is_dir() or not home.stat().st_mode & 0o011:
        return []
    return [path for path in sorted(home.iterdir()) if path.lstat().st_mode & 0o044]


def _first_line(path: str, pattern: str) -> str:
    """The first group of the first line that matches; empty when there is none."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else ""


def _gb(size: int) -> str:
    return f"{size / 1024**3:.1f} GB"
