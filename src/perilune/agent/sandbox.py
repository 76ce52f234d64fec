"""Isolation of the commands an agent runs.

Bubblewrap inside a user, mount and process namespace of our own: the workspace is the only writable
place besides a private /tmp, there is no network, the rest of the machine is absent or read-only, no
capability is left (also when Perilune runs as root), and everything dies with the command, the command
with Perilune. The workspace of a swarm agent is an overlay mounted inside that namespace, so after a
`kill -9` there is nothing to unmount.

Without bubblewrap or user namespaces there is no sandbox here yet (Landlock is not written): commands are
refused unless the setting `unsandboxed` allows them, and then run under resource limits only.
"""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from perilune.agent.process import ProcessResult, run_process
from perilune.agent.workspace import View
from perilune.errors import SandboxError

WORKSPACE = "/workspace"
PROBE_SECONDS = 10.0
LEAST_PID_MAX = 301
"""The kernel refuses a lower ceiling on process ids of a namespace."""

_ETC = (
    "alternatives", "group", "host.conf", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime",
    "mime.types", "nsswitch.conf", "passwd", "protocols", "services", "ssl", "terminfo",
)  # fmt: skip

_MOUNT_FAILED = secrets.token_hex(16)
"""Said by the set-up below and by nobody else: a command inside cannot know it, so it cannot pretend that the
sandbox failed, which would end the session."""

# Runs as root of its own user namespace. $1 pids, $2 lower, $3 upper, $4 work, then the bwrap command.
# The ceiling on processes is best effort: kernels before 6.14 have no such setting per namespace.
_SETUP = f"""
( echo "$1" > /proc/sys/kernel/pid_max ) 2>/dev/null
if [ -n "$2" ]; then
  mount -t overlay overlay -o "lowerdir=$2,upperdir=$3,workdir=$4,userxattr" "$3" ||
    {{ echo {_MOUNT_FAILED}; exit 125; }}
fi
shift 4
exec "$@"
"""
SETUP_FAILED = 125

_NAMESPACE = (
    "setpriv", "--pdeathsig", "KILL",
    "unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child",
    "sh", "-c", _SETUP, "sandbox",
)  # fmt: skip
_NEEDED = ("bwrap", "setpriv", "unshare", "prlimit", "mount", "sh")


@dataclass(frozen=True)
class ProcessLimits:
    """Ceilings of one command. `memory_mb` is address space, per process."""

    seconds: float = 120.0
    output_bytes: int = 30_000
    memory_mb: int = 4_096
    processes: int = 256
    """At least 301 in effect: the kernel's least ceiling of a process namespace."""
    file_mb: int = 1_024
    tmp_mb: int = 512
    open_files: int = 1_024


@dataclass(frozen=True)
class Probe:
    """What this machine offers, and why."""

    kind: Literal["bubblewrap", "none"]
    overlay: bool
    """Workspaces may be overlays; otherwise they must be copies."""
    reason: str
    mend: str = ""


@cache
def probe_machine() -> Probe:
    """Try the sandbox once with a real command; the answer holds for the life of the process."""
    if sys.platform != "linux":
        return Probe("none", False, f"sandboxes need Linux, this is {platform.system()}", "use Linux")
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        return Probe(
            "none", False, f"not installed: {', '.join(missing)}", "install bubblewrap and util-linux"
        )
    with tempfile.TemporaryDirectory(prefix="perilune-probe-") as folder:
        lower, upper, work = (Path(folder) / name for name in ("lower", "upper", "work"))
        for path in (lower, upper, work):
            path.mkdir()
        overlaid = _try(View(upper=upper, lower=lower, work=work))
        if overlaid is None:
            return Probe("bubblewrap", True, "bubblewrap, workspaces as overlays")
        plain = _try(View(upper=upper))
    if plain is None:
        return Probe("bubblewrap", False, f"bubblewrap, workspaces as copies: {overlaid}")
    return Probe("none", False, f"bubblewrap failed: {plain}", "allow unprivileged user namespaces")


def _try(view: View) -> str | None:
    """None when a trivial command runs in this view, else the first line of what went wrong."""
    try:
        done = subprocess.run(
            _bubblewrap(("true",), view, ProcessLimits(), {}),
            env=_environment({}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    return lines[0] if lines else f"exit code {done.returncode}"


class Sandbox:
    """Runs commands in isolation, at most two per core at once. One per process: it holds the slots."""

    def __init__(self, probe: Probe, *, unsandboxed: bool = False, slots: int | None = None) -> None:
        self.probed = probe
        self._unsandboxed = unsandboxed
        self._slots = asyncio.Semaphore(slots or 2 * (os.cpu_count() or 1))

    @classmethod
    def probe(cls, *, unsandboxed: bool = False, slots: int | None = None) -> Sandbox:
        """The sandbox of this machine. Never raises: `run` does, when there is none."""
        return cls(probe_machine(), unsandboxed=unsandboxed, slots=slots)

    @property
    def overlay(self) -> bool:
        """Whether `run` takes views with a lower folder."""
        return self.probed.kind == "bubblewrap" and self.probed.overlay

    @property
    def isolated(self) -> bool:
        return self.probed.kind != "none"

    def describe(self) -> str:
        """One line for `perilune doctor`."""
        if self.isolated:
            return self.probed.reason
        if self._unsandboxed:
            return f"NO SANDBOX (unsandboxed is set): {self.probed.reason}"
        return f"no sandbox: {self.probed.reason}"

    async def run(
        self,
        argv: Sequence[str],
        view: View,
        limits: ProcessLimits | None = None,
        *,
        env: Mapping[str, str] | None = None,
    ) -> ProcessResult:
        """Run a command with the workspace as its folder; waits for a free slot first.

        `env` is added to a minimal environment; nothing of our own is passed on. Raises SandboxError when
        it cannot be isolated."""
        limits = limits or ProcessLimits()
        command = self._command(argv, view, limits, env or {})
        async with self._slots:
            try:
                result = await run_process(
                    command,
                    cwd=None if self.isolated else view.upper,
                    env=_environment({} if self.isolated else env or {}),
                    seconds=limits.seconds,
                    output_bytes=limits.output_bytes,
                )
            except OSError as error:
                raise SandboxError(f"cannot start the sandbox: {error}") from error
        if result.exit_code == SETUP_FAILED and _MOUNT_FAILED in result.output:
            said = result.output.replace(_MOUNT_FAILED, "").strip()
            raise SandboxError(f"cannot mount the workspace: {said}")
        return result

    def _command(
        self, argv: Sequence[str], view: View, limits: ProcessLimits, env: Mapping[str, str]
    ) -> list[str]:
        if self.isolated:
            if view.lower is not None and not self.probed.overlay:
                raise SandboxError("overlays are refused on this machine", mend="give it a copied workspace")
            return _bubblewrap(argv, view, limits, env)
        if not self._unsandboxed:
            raise SandboxError(
                f"commands cannot be isolated: {self.probed.reason}",
                mend=f"{self.probed.mend}, or set `unsandboxed` to run them without isolation",
            )
        if view.lower is not None:
            raise SandboxError("an overlay needs the sandbox", mend="give it a copied workspace")
        return [*_prlimit(limits), *argv]


def _bubblewrap(argv: Sequence[str], view: View, limits: ProcessLimits, env: Mapping[str, str]) -> list[str]:
    for path in (view.lower, view.upper, view.work):
        if path is not None and any(character in str(path) for character in ',:\\\n"'):
            raise SandboxError(f"the folder name {str(path)!r} cannot be mounted", mend="use a plain name")
    if view.lower is not None and view.work is None:
        raise SandboxError("an overlay view needs its work folder")
    setup = (
        str(max(limits.processes, LEAST_PID_MAX)),
        "" if view.lower is None else str(view.lower),
        str(view.upper),
        "" if view.work is None else str(view.work),
    )
    return [
        *_NAMESPACE,
        *setup,
        "bwrap",
        *_isolation(),
        # Before the rest: our Python may lie below /tmp, and has to be seen there.
        *("--size", str(limits.tmp_mb * 1_048_576), "--tmpfs", "/tmp"),
        *_read_only_system(),
        *("--dev", "/dev", "--proc", "/proc"),
        *("--bind", str(view.upper), WORKSPACE, "--chdir", WORKSPACE),
        # A hook or setting planted there would run later, outside, as the user.
        *("--ro-bind-try", f"{view.upper}/.git", f"{WORKSPACE}/.git"),
        *("--remount-ro", "/"),
        *(
            part
            for name, value in {**_environment(env), "HOME": "/tmp"}.items()
            for part in ("--setenv", name, value)
        ),
        "--",
        *_prlimit(limits),
        *argv,
    ]


def _isolation() -> tuple[str, ...]:
    # As root bwrap would keep every capability inside; the explicit user namespace, the other uid and
    # --cap-drop take them. --disable-userns stops the command from making namespaces of its own.
    return (
        *("--unshare-all", "--unshare-user", "--disable-userns", "--uid", "1000", "--gid", "1000"),
        *("--cap-drop", "ALL", "--die-with-parent", "--new-session", "--clearenv"),
    )


@cache
def _read_only_system() -> tuple[str, ...]:
    """The programs and libraries, and nothing of the machine's data: not /home, not /root, little of
    /etc."""
    parts: list[str] = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/") / name
        if path.is_symlink():
            parts += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            parts += ["--ro-bind", str(path), str(path)]
    for name in _ETC:
        parts += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for prefix in _interpreter_folders():
        parts += ["--ro-bind", prefix, prefix]
    return tuple(parts)


def _interpreter_folders() -> tuple[str, ...]:
    """Where our Python and its packages live, unless the system's folders hold them already."""
    prefixes = dict.fromkeys(
        str(Path(prefix).resolve()) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)
    )
    return tuple(prefix for prefix in prefixes if not f"{prefix}/".startswith("/usr/") and prefix != "/")


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    own = [f"{prefix}/bin" for prefix in dict.fromkeys((sys.prefix, sys.base_prefix))]
    path = ":".join(dict.fromkeys([*own, "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]))
    return {"PATH": path, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", "TERM": "dumb", **extra}


def _prlimit(limits: ProcessLimits) -> tuple[str, ...]:
    return (
        "prlimit",
        f"--as={limits.memory_mb * 1_048_576}",
        f"--cpu={int(limits.seconds) + 1}",
        f"--nproc={limits.processes}",
        f"--fsize={limits.file_mb * 1_048_576}",
        f"--nofile={limits.open_files}",
        "--core=0",
    )
