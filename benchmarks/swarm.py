"""How fast the swarm is without a model: `python benchmarks/swarm.py [--quick] [--json]`.

The workload W: 300 sub-agents at once, 14 steps each, bodies of about 2 KB, every acknowledged event synced
to disk. The model is scripted and answers at once, so what is measured is the swarm.

    durable_steps_per_s      steps of W through recorder, fold and journal; two durable waits a step
    cpu_ms_per_turn          CPU of this process per model call in a whole session of W: agent loop, tools,
                             workspaces, journal, merges (git's own processes not counted)
    session_steps_per_s      steps per second of that session, by the clock
    resume_s                 a session killed half-way: until all its agents have asked the model again
    workspaces_and_merges_s  300 overlays opened, written, read back; 300 merges onto one branch
    rss_mb                   peak memory of the session's process

Each part runs in a process of its own. `--peer-python` names an interpreter that has langgraph and
langgraph-checkpoint-sqlite; without one they are measured if this interpreter has them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from perilune.agent.loop import AnswerRecord, ToolRecord
from perilune.agent.profiles import load_profile
from perilune.backends.base import ModelEntry
from perilune.backends.rename_script import exchanges
from perilune.backends.scripted import Call, Reply, ScriptedBackend
from perilune.chat.messages import Completion, Message, Request, ToolCall, Usage
from perilune.settings import Settings
from perilune.swarm import events
from perilune.swarm.journal import Journal, JournalReader
from perilune.swarm.merge import Merger
from perilune.swarm.recorder import Recorder
from perilune.swarm.repository import Repository, run_git
from perilune.swarm.session import SessionSpec, journal_path, plan_session, run_session
from perilune.swarm.state import SessionState
from perilune.swarm.workspaces import Workspaces

AGENTS, STEPS = 300, 14
BODY = "".join(f"line {number:02}: {'x' * 43}\n" for number in range(40))
"""2.2 KB, in lines."""
LANGGRAPH = """
import asyncio, sys, time, tempfile, os
from typing import TypedDict
from langgraph.graph import StateGraph, START, END
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
agents, steps, body = int(sys.argv[1]), int(sys.argv[2]), "x" * 2200
class State(TypedDict):
    done: int
    messages: list
async def step(state):
    return {"done": state["done"] + 1, "messages": [*state["messages"], body]}
async def main():
    graph = StateGraph(State)
    graph.add_node("step", step)
    graph.add_edge(START, "step")
    graph.add_conditional_edges("step", lambda state: END if state["done"] >= steps else "step")
    path = os.path.join(tempfile.mkdtemp(), "w.db")
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        app = graph.compile(checkpointer=saver)
        began = time.perf_counter()
        await asyncio.gather(*(
            app.ainvoke({"done": 0, "messages": []}, durability="sync",
                        config={"configurable": {"thread_id": str(n)}, "recursion_limit": 100})
            for n in range(agents)))
        print(agents * steps / (time.perf_counter() - began))
asyncio.run(main())
"""


@dataclass(frozen=True)
class Size:
    agents: int
    steps: int
    repeats: int


# ---- the script of W


def script(steps: int, asked: Callable[[str], None] = lambda prompt: None) -> ScriptedBackend:
    """An orchestrator that starts all agents in one answer, and agents that look, change one file, submit."""

    def orchestrator(request: Request) -> Reply | None:
        if not any(tool.name == "assign_task" for tool in request.tools):
            return None
        done = len(exchanges(request.messages))
        if done == 0:
            return Call("create_subagent", {"name": "w", "system_prompt": "Work."})
        if done == 1:
            count = int(str(request.messages[1].content).split()[0])
            return [Call("assign_task", {"agent": "w", "prompt": f"m/{n:03}.txt"}) for n in range(count)]
        return "All done."

    def agent(request: Request) -> Reply:
        path = str(request.messages[1].content)
        asked(path)
        done = len(exchanges(request.messages))
        if done < steps - 2:
            return Call("view", {"path": path, "first": done + 1})
        if done == steps - 2:
            return Call("replace", {"path": path, "old": "line 03:", "new": "LINE 03:"})
        return Call("submit", {"summary": "Done."})

    return ScriptedBackend([orchestrator, agent], entry=entry())


def entry() -> ModelEntry:
    return ModelEntry(
        id="scripted", backend="scripted", context_length=262_144, max_output_tokens=16_384, price="free"
    )


async def make_repository(root: Path, files: int) -> Path:
    (root / "m").mkdir(parents=True)
    for number in range(files):
        (root / "m" / f"{number:03}.txt").write_text(BODY)
    for args in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "Base"]):
        done = await run_git(root, *args)
        assert done.code == 0, done.message
    return root


# ---- the parts


async def durable_steps(size: Size, folder: Path) -> dict[str, float]:
    """Recorder, fold and journal alone."""
    started = events.SessionStarted(
        id="W",
        goal="W",
        repo="/",
        base="0" * 40,
        branch="w",
        entry=entry(),
        orchestrator=load_profile("orchestrate"),
        subagent=load_profile("code"),
        profile_hashes={},
        budget=events.Budget(steps=10**9),
    )
    journal = Journal.open(folder / "w.db")

    async def agent(recorder: Recorder, name: str) -> None:
        recorder.post(
            events.AssignmentQueued(id=name, key=name, agent="w", prompt=name, stage=1, base="0" * 40),
            events.AssignmentClaimed(id=name),
            events.AttemptStarted(id=name, attempt=0, base="0" * 40),
        )
        for step in range(size.steps):
            call = ToolCall(f"functions.view:{step}", "view", f'{{"path":"m","first":{step + 1}}}')
            await recorder.record(events.ModelStarted(agent=name, tokens=1, nano_usd=0))
            answer = Completion(
                message=Message(role="assistant", content="", tool_calls=(call,)),
                finish_reason="tool_calls",
                usage=Usage(prompt_tokens=9, completion_tokens=9),
            )
            recorder.post(
                events.ModelAnswered(agent=name, record=AnswerRecord(answer), nano_usd=0),
                events.ToolStarted(agent=name, call_id=call.id, name=call.name),
            )
            await recorder.record(events.ToolFinished(agent=name, record=ToolRecord(call.id, BODY)))

    async with Recorder(journal, SessionState()) as recorder:
        recorder.post(started, events.AgentCreated(name="w", system_prompt="Work."))
        began = time.perf_counter()
        await asyncio.gather(*(agent(recorder, f"a{number}") for number in range(size.agents)))
        seconds = time.perf_counter() - began
    journal.close()
    return {"durable_steps_per_s": size.agents * size.steps / seconds}


async def session(size: Size, folder: Path) -> dict[str, float]:
    """A whole session of W, then the same one taken up from the middle of its journal."""
    settings = Settings(home=folder)
    repo = await make_repository(folder / "repo", size.agents)
    backend = script(size.steps)
    spec = SessionSpec(f"{size.agents} files", repo, agents=size.agents, steps=10**6)
    plan = await plan_session(spec, backend=backend, settings=settings)
    began, cpu = time.perf_counter(), time.process_time()
    outcome = await run_session(folder, plan, backend=backend, settings=settings)
    seconds, used = time.perf_counter() - began, time.process_time() - cpu
    assert outcome.status == "complete", outcome.message
    turns = outcome.state.spent.steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "cpu_ms_per_turn": 1000 * used / turns,
        "session_steps_per_s": turns / seconds,
        "rss_mb": peak,
        "resume_s": await resume(size, folder, repo, plan.id),
    }


async def resume(size: Size, folder: Path, repo: Path, session_id: str) -> float:
    """From the start of a session killed half-way until every agent has asked the model again."""
    reader = JournalReader(journal_path(folder, session_id))
    entries = list(reader.read())
    reader.close()
    # Up to here no agent has had its last answer, so every one of them asks again.
    first_end = next(e.seq for e in entries if submits(e.event))
    half = Journal.open(journal_path(folder / "killed", session_id))
    await half.append(entries[: min(len(entries) // 2, first_end - 1)])
    half.close()
    await run_git(repo, "branch", "-D", f"perilune/{session_id}")
    seen: set[str] = set()
    ready: list[float] = []

    def asked(prompt: str) -> None:
        seen.add(prompt)
        if len(seen) == size.agents and not ready:
            ready.append(time.perf_counter())

    began = time.perf_counter()
    settings = Settings(home=folder / "killed")
    backend = script(size.steps, asked)
    outcome = await run_session(folder / "killed", session_id, backend=backend, settings=settings)
    assert outcome.status == "complete", outcome.message
    return ready[0] - began


def submits(event: events.Event) -> bool:
    if not isinstance(event, events.ModelAnswered):
        return False
    return any(call.name == "submit" for call in event.record.completion.message.tool_calls)


async def workspaces_and_merges(size: Size, folder: Path) -> dict[str, float]:
    repository = await Repository.open(await make_repository(folder / "repo", size.agents))
    base = await repository.export(repository.base_commit, folder / "base")
    merger = Merger(repository, "perilune/w")
    await merger.create()
    spaces = Workspaces(folder / "spaces", base)
    began = time.perf_counter()
    for number in range(size.agents):
        space = spaces.open(f"a{number}", 0)
        path = f"m/{number:03}.txt"
        space.write_bytes(path, space.read_bytes(path).replace(b"line 03:", b"LINE 03:"))
        merged = await merger.apply(await space.changes(), f"Change {path}", 1_700_000_000)
        assert merged.moved
        space.close()
    return {"workspaces_and_merges_s": time.perf_counter() - began}


PARTS = {"durable": durable_steps, "session": session, "merges": workspaces_and_merges}


def run_part(name: str, size: Size) -> dict[str, float]:
    """One part in a process of its own."""
    command = [sys.executable, __file__, "--part", name, str(size.agents), str(size.steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"part {name} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def part(name: str, agents: int, steps: int) -> None:
    with tempfile.TemporaryDirectory(prefix="perilune-bench-") as folder:
        print(json.dumps(asyncio.run(PARTS[name](Size(agents, steps, 1), Path(folder)))))


def peers(python: str, size: Size) -> dict[str, float]:
    """LangGraph's SQLite checkpointer over the same number of steps and bytes; nothing where it is absent."""
    command = [python, "-c", LANGGRAPH, str(size.agents), str(size.steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return {"langgraph_durable_steps_per_s": float(done.stdout.splitlines()[-1])}
    if "ModuleNotFoundError" not in done.stderr:
        print(done.stderr, file=sys.stderr)
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="60 agents, 6 steps, once")
    parser.add_argument("--json", action="store_true", help="one flat JSON object on the last line")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that has langgraph")
    parser.add_argument("--part", nargs=3, metavar=("NAME", "AGENTS", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part(options.part[0], int(options.part[1]), int(options.part[2]))
        return
    size = Size(60, 6, 1) if options.quick else Size(AGENTS, STEPS, 3)
    runs: dict[str, list[float]] = {}
    for _ in range(size.repeats):
        for name in PARTS:
            for key, value in run_part(name, size).items():
                runs.setdefault(key, []).append(value)
    figures = {key: statistics.median(values) for key, values in runs.items()}
    peer = peers(options.peer_python, size)
    report(size, {**figures, **peer}, bool(peer))
    if options.json:
        print(json.dumps({key: round(value, 3) for key, value in {**figures, **peer}.items()}))


def report(size: Size, figures: dict[str, float], has_peer: bool) -> None:
    print(f"{size.agents} agents, {size.steps} steps each, bodies of {len(BODY):,} bytes, fsync")
    print(f"Python {platform.python_version()}, {platform.machine()}; medians of {size.repeats}")
    for key, value in figures.items():
        print(f"  {key:<32}{value:>12,.2f}")
    if not has_peer:
        print("  langgraph: absent (pip install langgraph langgraph-checkpoint-sqlite, or --peer-python)")


if __name__ == "__main__":
    main()
