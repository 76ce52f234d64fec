"""`perilune swarm`: run a goal over a repository, go on with it, look at what became of it."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from perilune.cli.flags import Commands, add_settings, add_unsandboxed, dollars, load_settings, whole
from perilune.cli.foreground import confirm, estimate_of, explain, run_here, tell
from perilune.cli.house import open_house, stop_signals
from perilune.cli.terminal import harmless
from perilune.errors import SessionNotFound

if TYPE_CHECKING:
    from perilune.settings import Settings
    from perilune.swarm.events import Budget
    from perilune.swarm.session import Outcome

NOT_STARTED = 1


def add(commands: Commands) -> None:
    parser = commands.add_parser("swarm", help="run a goal over a git repository with many agents")
    actions: Commands = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_run(actions)
    _add_resume(actions)
    for name, function, said in (
        ("list", list_sessions, "all sessions of this HOME"),
        ("show", show, "the state of a session now, running or not"),
        ("report", report, "what a session did, from its journal alone"),
    ):
        action = actions.add_parser(name, help=said)
        add_settings(action)
        action.set_defaults(run=function)
        if name != "list":
            action.add_argument("id", metavar="ID", help="as `perilune swarm list` shows it")
        if name == "show":
            action.add_argument("--follow", action="store_true", help="go on showing it until it ends")
        if name == "report":
            action.add_argument("--json", action="store_true", help="as JSON instead of Markdown")


def _add_run(actions: Commands) -> None:
    parser = actions.add_parser(
        "run",
        help="start a session",
        description="Checks goal and repository, shows an estimate, asks, and runs. The result is a branch: "
        "your working tree and your branches are never touched.",
    )
    add_settings(parser, "checkpoint", "template", "threads", "retries")
    add_unsandboxed(parser)
    parser.add_argument("goal", metavar="GOAL", help='such as "Rename OLD to NEW in DIR."')
    parser.add_argument("--repo", type=Path, default=Path(), metavar="DIR", help="a git repository (.)")
    parser.add_argument("--agents", type=whole, metavar="N", help="most sub-agents that live at once")
    parser.add_argument(
        "--check", default="", metavar="CMD", help="shell command that accepts (0) or rejects a result"
    )
    parser.add_argument("--model", default="", metavar="NAME", help="which model (default: the first served)")
    _add_budget(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.set_defaults(run=run)


def _add_resume(actions: Commands) -> None:
    parser = actions.add_parser("resume", help="go on with a session that was stopped or killed")
    add_settings(parser, "checkpoint", "template", "threads")
    add_unsandboxed(parser)
    parser.add_argument("id", metavar="ID", help="as `perilune swarm list` shows it")
    _add_budget(parser)
    parser.set_defaults(run=resume)


def _add_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=whole, metavar="N", help="most model calls, over all agents")
    parser.add_argument("--tokens", type=whole, metavar="N", help="most tokens, over all agents")
    parser.add_argument("--budget", type=dollars, metavar="USD", help="most money, over all agents")


def run(given: argparse.Namespace) -> int:
    return asyncio.run(_run(given, load_settings(given)))


async def _run(given: argparse.Namespace, settings: Settings) -> int:
    from perilune.swarm.session import SessionSpec, plan_session

    spec = SessionSpec(
        goal=given.goal,
        repo=given.repo,
        agents=given.agents,
        steps=given.steps,
        tokens=given.tokens,
        nano_usd=given.budget,
        model=given.model,
        check=("sh", "-c", given.check) if given.check else (),
    )
    async with open_house(settings, "swarm run") as house:
        salt = house.accounts.local_principal().cache_salt
        plan = await plan_session(spec, backend=house.metered, settings=settings, salt=salt)
        estimate = estimate_of(plan, house)
        explain(plan, estimate)
        if not confirm(estimate, given):
            print("Not started, nothing was spent.")
            return NOT_STARTED
        with stop_signals() as stop:
            return _end(await run_here(house, plan, stop), settings)


def resume(given: argparse.Namespace) -> int:
    return asyncio.run(_resume(given, load_settings(given)))


async def _resume(given: argparse.Namespace, settings: Settings) -> int:
    budget = _raised(given)
    async with open_house(settings, "swarm resume") as house:
        with stop_signals() as stop:
            return _end(await run_here(house, given.id, stop, budget), settings)


def _raised(given: argparse.Namespace) -> Budget | None:
    """The session's budget with what was given in its place; None when nothing was given."""
    import msgspec

    from perilune.swarm.view import Watch

    wanted = {"steps": given.steps, "tokens": given.tokens, "nano_usd": given.budget}
    changes = {name: value for name, value in wanted.items() if value is not None}
    if not changes:
        return None
    with closing(Watch(_journal(given))) as watch:
        watch.poll()
        return msgspec.structs.replace(watch.state.budget, **changes)


def _end(outcome: Outcome, settings: Settings) -> int:
    tell(outcome, settings.home)
    if outcome.status == "complete":
        session = outcome.state.session
        # Typed in any folder, the lines must do the same.
        git = f"git -C {shlex.quote(session.repo)}"
        print(f"Look at it {git} diff {session.base[:12]} {outcome.branch}")
        print(f"Take it    {git} merge {outcome.branch}")
    elif outcome.error is not None:
        print(f"perilune: {harmless(str(outcome.error), sys.stderr)}", file=sys.stderr)
    return outcome.exit_code


def list_sessions(given: argparse.Namespace) -> int:
    from perilune.store import home_holder
    from perilune.swarm.session import sessions

    settings = load_settings(given)
    owned = home_holder(settings.home) is not None
    found = sessions(settings.home)
    for one in found:
        died = one.status == "running" and not owned
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.started_at / 1000))
        if not one.started_at:
            began = f"{'-':<16}"
        print(f"{one.id}  {'died' if died else one.status:<10}  {began}  {one.goal or one.message}")
    if not found:
        print('None yet: perilune swarm run "GOAL" --repo DIR')
    return 0


def show(given: argparse.Namespace) -> int:
    import shutil

    from perilune.swarm.view import Watch, follow, frame, now_ms

    journal = _journal(given)
    if given.follow:
        asyncio.run(follow(journal, sys.stdout))
        return 0
    with closing(Watch(journal)) as watch:
        watch.poll()
        lines = frame(watch.state, list(watch.last), shutil.get_terminal_size().columns, now_ms())
        print("\n".join(lines))
    return 0


def report(given: argparse.Namespace) -> int:
    from perilune.swarm.report import read_report, to_json, to_markdown

    found = read_report(_journal(given))
    print(harmless(to_json(found).decode() if given.json else to_markdown(found), sys.stdout), end="")
    return 0


def _journal(given: argparse.Namespace) -> Path:
    """The journal of the session that was named. Raises SessionNotFound."""
    from perilune.swarm.session import journal_path

    journal = journal_path(load_settings(given).home, given.id)
    if not journal.is_file():
        raise SessionNotFound(f"no session {given.id}", mend="perilune swarm list")
    return journal
