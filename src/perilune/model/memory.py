"""How much memory this process may still take, on Linux; elsewhere it is not known. No torch here."""

from __future__ import annotations

import re
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
"""Of this process in a container (cgroup v2); on a plain host its root, which has no limit."""


def free_memory() -> int | None:
    """Bytes: what the kernel calls available, and no more than the container's limit leaves."""
    free = meminfo("MemAvailable")
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return free
    # Pages of files count as used and are given up when asked for.
    statistics = _text(CGROUP / "memory.stat")
    files = re.search(r"^inactive_file (\d+)$", statistics, re.MULTILINE)
    left = max(limit - used + (int(files[1]) if files else 0), 0)
    return left if free is None else min(free, left)


def meminfo(name: str) -> int | None:
    """Bytes of one line of /proc/meminfo, such as MemTotal."""
    found = re.search(rf"^{name}:\s*(\d+) kB", _text(MEMINFO), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    """Empty where there is no such file: another system, or no container."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
