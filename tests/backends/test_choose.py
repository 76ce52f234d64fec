"""Which backend the settings mean; and the whole chain from the ledger to a wire that fails."""

from pathlib import Path

import pytest
from loopback import GOOD, Endpoint, error

from perilune.accounts.accounts import Accounts
from perilune.agent.solo import run_agent
from perilune.agent.workspace import DirectoryWorkspace
from perilune.backends import local
from perilune.backends.base import Backend, complete
from perilune.backends.choose import open_backend
from perilune.backends.faulty import FaultPlan, FaultyBackend
from perilune.backends.metered import MeteredBackend
from perilune.backends.router import Router
from perilune.backends.scripted import ScriptedBackend
from perilune.chat.messages import Message, Request
from perilune.errors import BackendError, ConfigError
from perilune.settings import Settings


def ask(model: str) -> Request:
    return Request(model=model, messages=(Message(role="user", content="hi"),))


async def test_an_endpoint_answers_under_its_own_and_the_given_name(tmp_path: Path) -> None:
    async with Endpoint([GOOD]) as endpoint:
        settings = Settings(
            home=tmp_path, model_url=endpoint.url, model_name="theirs", serve_as="kimi-k2.6", model_key="sk-1"
        )
        backend = await open_backend(settings)
        for name in ("theirs", "kimi-k2.6"):
            assert (await complete(backend, ask(name))).message.content == "Hello"
        assert [heard.json["model"] for heard in endpoint.heard if heard.body] == ["theirs", "theirs"]
        await backend.close()


async def test_a_wrong_url_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model_url"):
        await open_backend(Settings(home=tmp_path, model_url="http://a b", model_name="m"))


async def test_without_the_engine_extra_the_mend_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "ENGINE_PACKAGES", ("torch", "no_such_package_of_the_engine"))
    with pytest.raises(ConfigError, match=r"no_such_package_of_the_engine .*perilune\[engine\].*connect"):
        await open_backend(Settings(home=tmp_path))


async def test_a_failed_call_and_its_retry_are_two_rows(tmp_path: Path) -> None:
    async with Endpoint([error(404), error(500), GOOD]) as endpoint:
        settings = Settings(home=tmp_path, model_url=endpoint.url, model_name="m", model_retries=0)
        backend = await open_backend(settings)
        with Accounts.open(tmp_path, settings) as accounts:
            metered = MeteredBackend(backend, accounts, accounts.local_principal())
            with pytest.raises(BackendError):
                await metered.complete(ask("m"))
            _, charge = await metered.complete(ask("m"))
            finished, failed = accounts.usage_rows()
            assert (failed.outcome, failed.charge) == ("failed", 0)
            assert (finished.outcome, finished.charge) == ("finished", 4 * 950 + 8 * 160 + 3 * 4000)
            assert finished.charge == charge.nano_usd
            assert accounts.verify() == ()
        await backend.close()


@pytest.mark.parametrize("seed", range(4))
async def test_an_agent_finishes_its_file_over_a_failing_model(tmp_path: Path, seed: int) -> None:
    plan = FaultPlan(seed=seed, error=0.2, cut=0.2, broken_json=0.2)
    inner: Backend = Router([FaultyBackend(ScriptedBackend(), plan)])
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    (work / "a.py").write_text("foo = 1\n" * 6)
    failures = 0
    with Accounts.open(home, Settings(home=home)) as accounts:
        metered = MeteredBackend(inner, accounts, accounts.local_principal())
        while True:
            try:
                result = await run_agent(
                    metered,
                    "rename",
                    "Rename foo to bar.",
                    "a.py",
                    DirectoryWorkspace(work),
                    model="scripted",
                )
            except BackendError:
                failures += 1
                assert failures < 50
            else:
                break
        assert accounts.verify() == ()
        outcomes = [row.outcome for row in accounts.usage_rows(limit=1000)]
    assert result.status == "succeeded"
    assert (work / "a.py").read_text() == "bar = 1\n" * 6
    assert outcomes.count("failed") == failures
    assert outcomes.count("finished") >= result.steps
