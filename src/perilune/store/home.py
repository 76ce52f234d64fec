"""One HOME, one owner: the lock, and how others find out who holds it."""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from perilune.errors import ConfigError, HomeLocked

LOCK_TRIES = 5
LOCK_PAUSE_S = 0.02
"""`home_holder` holds the lock for an instant while it looks; an owner-to-be waits that out."""


@dataclass(frozen=True)
class Holder:
    """Who owns a HOME."""

    pid: int
    purpose: str
    """The command that holds it, such as `serve`."""
    address: str
    """The base URL of a server that speaks for this HOME; empty for other commands."""
    admin: str = ""
    """The URL of its admin door; empty when that is closed."""


class HomeLock:
    """Ownership of a HOME folder: an exclusive flock on HOME/lock.

    The kernel drops it when the process ends, however it ends, so a killed owner leaves nothing to clean.
    The descriptor is closed on exec: child processes never hold it."""

    def __init__(self, home: Path, purpose: str = "perilune") -> None:
        """Take the lock. Raises HomeLocked naming the owner, ConfigError when HOME cannot be written."""
        self.path = home / "lock"
        self._purpose = purpose
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"cannot write to {home}: {error.strerror}", field="home", mend="choose another with --home"
            ) from error
        if not _try_lock(self._fd):
            os.close(self._fd)
            raise _locked(home)
        self.announce("")

    def announce(self, address: str, admin: str = "") -> None:
        """Record the base URL at which the owner can be reached, and that of its admin door."""
        text = f"{os.getpid()}\n{self._purpose}\n{address}\n{admin}\n".encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text, 0)

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def home_holder(home: Path) -> Holder | None:
    """Who owns HOME now; None when nobody does. Raises ConfigError for a HOME that cannot be read."""
    try:
        fd = os.open(home / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"cannot read {home}: {error.strerror}", field="home", mend="choose another with --home"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(fd)
    finally:
        os.close(fd)
    return None


def _try_lock(fd: int) -> bool:
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_S)
        else:
            return True
    return False


def _read_holder(fd: int) -> Holder:
    lines = os.pread(fd, 4096, 0).decode(errors="replace").splitlines()
    pid, purpose, address, admin = (*lines, "", "", "", "")[:4]
    return Holder(int(pid) if pid.isdigit() else 0, purpose, address, admin)


def _locked(home: Path) -> HomeLocked:
    holder = home_holder(home)
    who = f"process {holder.pid} (perilune {holder.purpose})" if holder and holder.pid else "another process"
    mend = "try again"
    if holder and holder.pid:
        mend = f"use another --home, or stop it with `kill {holder.pid}`"
    if holder and holder.address:  # a server: who only wants to ask its model need not stop it
        mend = f"to chat with it set PERILUNE_BASE_URL={holder.address} and PERILUNE_API_KEY; else {mend}"
    return HomeLocked(f"{home} is in use by {who}", field="home", mend=mend)
