"""The command `perilune` with a scripted, unhurried model: for tests that kill the whole process."""

from __future__ import annotations

import sys

import msgspec

from perilune.backends.base import Backend
from perilune.backends.router import Router
from perilune.backends.scripted import ScriptedBackend, scripted_entry
from perilune.cli import house
from perilune.cli.main import main
from perilune.settings import Settings

LATENCY_S = 0.1


async def scripted(settings: Settings) -> Backend:
    entry = msgspec.structs.replace(
        scripted_entry(), goals="rename", orchestrator_profile="orchestrate-rename", subagent_profile="rename"
    )
    return Router([ScriptedBackend(entry=entry, latency=LATENCY_S)])


if __name__ == "__main__":
    house.open_model = scripted
    sys.exit(main())
