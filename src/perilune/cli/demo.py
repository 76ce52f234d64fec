"""`perilune demo`, which `make run` runs: a real swarm over a copy of the example, its result, the API up."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from perilune.cli.demo_project import GOAL, prepare, run_tests
from perilune.cli.flags import Commands, add_settings, add_unsandboxed, load_settings
from perilune.cli.foreground import estimate_of, explain, run_here, tell
from perilune.cli.house import House, open_house, stop_signals
from perilune.cli.terminal import harmless
from perilune.errors import GoalRefused, SandboxError

if TYPE_CHECKING:
    from perilune.settings import Settings
    from perilune.swarm.session import Outcome, SessionInfo

SHOWN_DIFF_LINES = 14
ANEW = "make run FRESH=1"


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="the demonstration: a swarm over a copy of an example project",
        description="Copies the project to HOME/demo, serves the API, runs the goal with the bundled model, "
        "shows the result and stays up until Ctrl-C. Killed and started again, it goes on where it was.",
    )
    add_settings(parser, "host", "port", "serve_as", "checkpoint", "template", "threads", "max_agents")
    add_unsandboxed(parser)
    parser.add_argument("--project", type=Path, required=True, metavar="DIR", help="the project to copy")
    parser.add_argument("--goal", default=GOAL, help=f"what to do ({GOAL})")
    parser.add_argument("--once", action="store_true", help="end with the swarm; so it does in a pipe")
    parser.add_argument("--fresh", action="store_true", help="start anew, on another copy")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    # The demonstration shows the bundled model, and never spends money on a connected one.
    return asyncio.run(_run(given, replace(load_settings(given), model_url="", backends=(), access=())))


async def _run(given: argparse.Namespace, settings: Settings) -> int:
    once = given.once or not sys.stdout.isatty()
    with stop_signals() as stop:
        async with open_house(settings, "demo") as house, serving(house) as base_url:
            outcome = await _swarm(given, house, stop)
            if outcome.error is not None:
                print(f"perilune: {harmless(str(outcome.error), sys.stderr)}", file=sys.stderr)
                return outcome.exit_code
            await _show_result(outcome, house)
            _suggest(outcome, base_url, settings)
            if not once:
                print(f"\nThe API stays up at {base_url} until Ctrl-C.", flush=True)
                await stop.wait()
            return outcome.exit_code


@asynccontextmanager
async def serving(house: House) -> AsyncIterator[str]:
    """The API beside the swarm, on the port of the settings or the next free one. Its base URL."""
    from perilune.accounts.accounts import KEYS_FILE
    from perilune.api.serve import Server

    server = Server(house.settings, house.model, house.accounts)
    await server.start(any_port=True)
    house.lock.announce(server.base_url)
    try:
        wanted = house.settings.port
        if wanted and not server.root_url.endswith(f":{wanted}"):
            print(f"Port {wanted} is taken; the next free one is used.")
        print(f"API        {server.base_url}, keys in {house.settings.home / KEYS_FILE}")
        yield server.base_url
    finally:
        await server.stop()


async def _swarm(given: argparse.Namespace, house: House, stop: asyncio.Event) -> Outcome:
    """The session over the copy: a new one, or what is left of the last one."""
    from perilune.swarm.session import SessionSpec, plan_session

    copy, _ = await prepare(given.project, house.settings.home / "demo", fresh=given.fresh)
    found = _last_session(house.settings.home, copy, given.goal)
    if found is None:
        spec = SessionSpec(goal=given.goal, repo=copy)
        salt = house.accounts.local_principal().cache_salt
        plan = await plan_session(spec, backend=house.metered, settings=house.settings, salt=salt)
        explain(plan, estimate_of(plan, house))
        return await run_here(house, plan, stop)
    if found.status in ("complete", "incomplete"):
        print(f"Found      session {found.id}, {found.status}: nothing is left to do. Anew: {ANEW}")
    else:
        print(f"Found      session {found.id}, not finished: going on where it was.")
    return await run_here(house, found.id, stop)


def _last_session(home: Path, copy: Path, goal: str) -> SessionInfo | None:
    from perilune.swarm.session import sessions
    from perilune.swarm.verify import parse_rename_goal

    mine = [one for one in sessions(home) if one.repo and Path(one.repo).resolve() == copy.resolve()]
    spellings = {goal.strip()}
    with suppress(GoalRefused):
        spellings.add(parse_rename_goal(goal).sentence)
    return next((one for one in reversed(mine) if one.goal in spellings), None)


async def _show_result(outcome: Outcome, house: House) -> None:
    """Report, diff, and the project's own tests on what was merged."""
    from perilune.agent.sandbox import Sandbox
    from perilune.swarm.repository import Repository

    tell(outcome, house.settings.home)
    session = outcome.state.session
    repository = await Repository.open(Path(session.repo), base=session.base)
    stat = (await repository.must("diff", "--shortstat", session.base, outcome.tip)).decode().strip()
    lines = (await repository.diff(session.base, outcome.tip)).splitlines()
    print(f"Diff       {stat or 'empty: nothing was merged'}")
    if not stat:
        return
    for line in lines[:SHOWN_DIFF_LINES]:
        print(f"           {harmless(line, sys.stdout)}")
    if len(lines) > SHOWN_DIFF_LINES:
        print(f"           ... and {len(lines) - SHOWN_DIFF_LINES} more lines")
    sandbox = Sandbox.probe(unsandboxed=house.settings.unsandboxed)
    try:
        tests = await run_tests(repository, outcome.tip, house.settings.home / "demo" / ".merged", sandbox)
    except SandboxError as error:
        print(f"Tests      not run: {error}")
        return
    print(f"Tests      {'passed' if tests.passed else 'FAILED'} on the merged tree: {tests.summary}")


def _suggest(outcome: Outcome, base_url: str, settings: Settings) -> None:
    from perilune.accounts.accounts import KEYS_FILE

    session = outcome.state.session
    keys = settings.home / KEYS_FILE
    print("\nTry next:")
    print(f"  git -C {session.repo} diff {session.base[:12]} {outcome.branch}")
    key = f"$(grep -o 'plk_[A-Za-z0-9_]*' {keys} | tail -1)"
    print(f'  curl {base_url}/models -H "Authorization: Bearer {key}"')
    print(f"  {ANEW}        # or FILES=300; your own model: perilune connect URL")
