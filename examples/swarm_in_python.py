"""Run a swarm from Python: `python examples/swarm_in_python.py REPO "Rename OLD to NEW in DIR."`

It does what `perilune swarm run` does: own HOME, plan, show the estimate, run, report. The model is the
bundled one, or the one that `perilune connect` wrote to HOME's settings.
"""

import asyncio
import sys
from pathlib import Path

from perilune.accounts.accounts import Accounts
from perilune.backends.choose import open_backend
from perilune.backends.metered import MeteredBackend
from perilune.errors import PeriluneError
from perilune.settings import Settings
from perilune.store import HomeLock
from perilune.swarm.estimate import estimate
from perilune.swarm.report import read_report, to_markdown
from perilune.swarm.session import SessionSpec, journal_path, plan_session, run_session


async def main(repo: str, goal: str) -> int:
    settings = Settings.load()
    with HomeLock(settings.home, "example"), Accounts.open(settings.home, settings) as accounts:
        model = await open_backend(settings)
        backend = MeteredBackend(model, accounts, accounts.local_principal())
        try:
            spec = SessionSpec(goal=goal, repo=Path(repo), steps=2000)
            plan = await plan_session(spec, backend=backend, settings=settings)
            print(estimate(plan.started, plan.scope, accounts.prices).text())
            outcome = await run_session(settings.home, plan, backend=backend, settings=settings)
        finally:
            await model.close()
    print(to_markdown(read_report(journal_path(settings.home, plan.id))))
    return outcome.exit_code


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(*sys.argv[1:3])))
    except PeriluneError as error:
        sys.exit(f"{error}")
