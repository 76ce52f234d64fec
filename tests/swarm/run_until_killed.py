"""Run in a process of its own by test_session_kill.py, and killed there: start or resume one session.

python run_until_killed.py FOLDER SESSION LATENCY
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from perilune.backends.scripted import ScriptedBackend
from perilune.settings import Settings
from perilune.store import HomeLock
from perilune.swarm.events import SessionStarted
from perilune.swarm.session import Plan, journal_path, run_session


async def main(folder: Path, latency: float) -> int:
    home = folder / "home"
    started = msgspec.json.decode((folder / "plan.json").read_bytes(), type=SessionStarted)
    session = started.id if journal_path(home, started.id).is_file() else Plan(started.id, started, None)
    with HomeLock(home, "swarm run"):
        try:
            outcome = await run_session(
                home, session, backend=ScriptedBackend(latency=latency), settings=Settings(home=home)
            )
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            raise
    print(outcome.status, outcome.state.seq, flush=True)
    return outcome.exit_code


sys.exit(asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2]))))
