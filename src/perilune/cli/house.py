"""What a command that works on its own needs: HOME, its accounts, a model, and the signals that stop it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perilune.accounts.accounts import Accounts
    from perilune.backends.base import Backend
    from perilune.backends.metered import MeteredBackend
    from perilune.settings import Settings
    from perilune.store import HomeLock

STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class House:
    settings: Settings
    lock: HomeLock
    accounts: Accounts
    model: Backend
    """Unmetered: for whoever meters by key, as the API does."""

    @property
    def metered(self) -> MeteredBackend:
        """The model on the account of HOME's local project."""
        from perilune.backends.metered import MeteredBackend

        return MeteredBackend(self.model, self.accounts, self.accounts.local_principal())


@asynccontextmanager
async def open_house(settings: Settings, purpose: str) -> AsyncIterator[House]:
    """Own HOME while the command runs. Raises HomeLocked, ConfigError, and what opening the model raises."""
    from perilune.accounts.accounts import Accounts
    from perilune.store import HomeLock

    with HomeLock(settings.home, purpose) as lock, Accounts.open(settings.home, settings) as accounts:
        backend = await open_model(settings)
        try:
            yield House(settings, lock, accounts, backend)
        finally:
            await backend.close()


async def open_model(settings: Settings) -> Backend:
    """The model that the settings choose: the bundled one, or the one that was connected."""
    from perilune.backends.choose import open_backend

    return await open_backend(settings)


@contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second one ends the process as usual."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def hear() -> None:
        asked.set()
        forget()

    def forget() -> None:
        for number in STOPPING:
            loop.remove_signal_handler(number)

    for number in STOPPING:
        loop.add_signal_handler(number, hear)
    try:
        yield asked
    finally:
        forget()
