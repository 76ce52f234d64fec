"""schemathesis over both OpenAPI documents, against real servers: no 5xx, and nothing that is not documented.

It runs as a process of its own beside the server in this one. Left out is only its check that every body
that fits the schema is accepted: no schema can tell that each tool call needs an answer. Here the run is
short and always the same; `make soak` has the long one.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from pathlib import Path

import pytest
from api_server import talker

from perilune.accounts.accounts import Accounts
from perilune.api.listen import listen
from perilune.api.serve import AdminServer, Server
from perilune.backends.router import Router
from perilune.settings import Settings

HOOKS = "schemathesis_hooks"
PHASES = "coverage,fuzzing,stateful"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None,
    reason="schemathesis is not installed: pip install 'perilune[dev]'",
)


async def findings(home: Path, door: str, cases: int, seed: int) -> str:
    """What schemathesis says about one door; empty when it has found nothing."""
    home.mkdir()
    settings = Settings.load(home, {"port": 0}, {})
    with Accounts.open(home, settings) as accounts:
        secret = accounts.create_key("schemathesis", ("chat", "admin"))
        own = accounts.authenticate(secret, "admin").key_id
        accounts.create_key("another")
        backend = Router([talker()])
        server = Server(settings, backend, accounts)
        await server.start()
        admin = AdminServer(settings, backend, accounts, server)
        await admin.start(listen("127.0.0.1", 0))
        try:
            asked = {"public": server, "admin": admin}[door]
            found = await run(asked.root_url, secret, own, cases, seed, home)
        finally:
            await admin.stop(grace_s=1)
            await server.stop(grace_s=1)
        assert accounts.verify() == ()
        return found


async def run(url: str, secret: str, own: int, cases: int, seed: int, folder: Path) -> str:
    words = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json",
        f"--header=Authorization: Bearer {secret}", "--exclude-checks=positive_data_acceptance",
        f"--phases={PHASES}", f"--seed={seed}", f"--max-examples={cases}", "--request-timeout=20",
        "--warnings=off", "--continue-on-failure",
    ]  # fmt: skip
    here = str(Path(__file__).parent)
    env = os.environ | {"SCHEMATHESIS_HOOKS": HOOKS, "KEY_ID": str(own), "PYTHONPATH": here}
    process = await asyncio.create_subprocess_exec(
        *words, cwd=folder, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    text = said.decode()
    assert "Test cases:" in text, text  # it did run
    return "" if process.returncode == 0 else text


@pytest.mark.parametrize("door", ["public", "admin"])
async def test_every_answer_is_as_documented(tmp_path: Path, door: str) -> None:
    found = await findings(tmp_path / "home", door, cases=6, seed=1)
    assert not found, found


@pytest.mark.slow
@pytest.mark.parametrize("door", ["public", "admin"])
@pytest.mark.parametrize("seed", range(2, 5))
async def test_every_answer_is_as_documented_over_many_cases(tmp_path: Path, door: str, seed: int) -> None:
    found = await findings(tmp_path / "home", door, cases=300, seed=seed)
    assert not found, found
