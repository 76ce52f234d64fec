"""The bundled model does its job: engine process, grammar, agent loop, tools."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nano.evaluate import orchestration

from perilune.agent.solo import run_agent
from perilune.agent.workspace import DirectoryWorkspace
from perilune.backends.embedded import EmbeddedBackend
from perilune.settings import Settings

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the engine")

TEXT = """\
class StateVector:
    def __init__(self, position, velocity):
        self.position = position
        self.velocity = velocity


def moved(state: StateVector, seconds: float) -> StateVector:
    return StateVector(state.position + state.velocity * seconds, state.velocity)
"""


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[EmbeddedBackend]:
    backend = await EmbeddedBackend.start(Settings(home=tmp_path, threads=1))
    yield backend
    await backend.close()


async def test_it_renames_in_a_file_and_runs_a_small_swarm(backend: EmbeddedBackend, tmp_path: Path) -> None:
    (tmp_path / "orrery").mkdir()
    file = tmp_path / "orrery" / "motion.py"
    file.write_text(TEXT)
    result = await run_agent(
        backend,
        "rename",
        "Rename StateVector to OrbitState.",
        "orrery/motion.py",
        DirectoryWorkspace(tmp_path),
        model="perilune-nano",
    )
    assert (result.status, result.message) == ("succeeded", "Done: 3 edits.")
    assert file.read_text() == TEXT.replace("StateVector", "OrbitState")
    files = [f"orrery/{name}.py" for name in ("bodies", "burns", "core", "events", "moons", "paths", "sky")]
    run = await orchestration(backend, files, "Rename StateVector to OrbitState in orrery.")
    assert run["done"] == len(files) and run["clause_right"] and run["wrong_calls"] == 0
