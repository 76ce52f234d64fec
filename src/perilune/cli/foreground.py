"""One swarm session in the foreground: what it will take, the question, the view, what came of it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from perilune.cli.house import House
from perilune.cli.terminal import harmless
from perilune.errors import InputError

if TYPE_CHECKING:
    from perilune.swarm.estimate import Estimate
    from perilune.swarm.events import Budget
    from perilune.swarm.session import Outcome, Plan

SHOWN_NOT_DONE = 8


def estimate_of(plan: Plan, house: House) -> Estimate:
    """What a planned session will take, at the price of its model."""
    from perilune.swarm.estimate import estimate

    return estimate(plan.started, plan.scope, house.accounts.prices)


def explain(plan: Plan, estimate: Estimate) -> None:
    """Goal, place, model and estimate, before anything is spent."""
    started = plan.started
    print(f"Goal       {started.goal}")
    print(f"Repository {started.repo} at {started.base[:12]}")
    print(f"Result     branch {started.branch}; the working tree stays as it is")
    print(f"Model      {started.entry.id}")
    for note in plan.notes:
        print(f"Note       {note}")
    print(estimate.text())


def confirm(estimate: Estimate, given: argparse.Namespace) -> bool:
    """Whether to start. Without a terminal nobody can be asked: then --yes, or a budget that covers it.

    Raises InputError where neither is given."""
    if given.yes:
        return True
    if sys.stdin.isatty() and sys.stdout.isatty():
        return input("Start? [y/N] ").strip().lower() in ("y", "yes")
    if given.budget is not None and given.budget >= estimate.nano_usd:
        return True
    raise InputError(
        "nobody can be asked here", field="confirmation", mend="--yes, or a --budget that covers it"
    )


async def run_here(
    house: House, session: Plan | str, stop: asyncio.Event, budget: Budget | None = None
) -> Outcome:
    """Run or resume a session to its end, showing how it goes. Raises what `run_session` does."""
    from perilune.swarm.session import journal_path, run_session
    from perilune.swarm.view import follow

    home, prices = house.settings.home, house.accounts.prices
    working = asyncio.create_task(
        run_session(
            home,
            session,
            backend=house.metered,
            settings=house.settings,
            budget=budget,
            prices=prices,
            stop=stop,
        )
    )
    journal = journal_path(home, session if isinstance(session, str) else session.id)
    try:
        await follow(journal, sys.stdout, ended=working.done)
    finally:
        # Without a view (a terminal that went away) the work goes on to its end all the same.
        outcome = await working
    return outcome


def tell(outcome: Outcome, home: Path) -> Path:
    """Say how a session ended and write its report. The report's path."""
    from perilune.swarm.report import write_report
    from perilune.swarm.session import journal_path

    folder = home / "reports"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    markdown, data = (folder / f"{outcome.session}.{ending}" for ending in ("md", "json"))
    write_report(journal_path(home, outcome.session), markdown, data)
    print(f"\n{outcome.status.capitalize()}: {harmless(outcome.message, sys.stdout)}")
    if outcome.not_done and outcome.error is None:
        more = len(outcome.not_done) - SHOWN_NOT_DONE
        names = ", ".join(outcome.not_done[:SHOWN_NOT_DONE]) + (f" and {more} more" if more > 0 else "")
        print(f"Not done   {names}")
    print(f"Branch     {outcome.branch} at {outcome.tip[:12]}")
    print(f"Report     {markdown}")
    if outcome.error is not None:
        print(f"Go on with perilune swarm resume {outcome.session}")
    return markdown
