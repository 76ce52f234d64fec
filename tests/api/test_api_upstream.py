"""One Perilune as the endpoint of another: answers pass unchanged, and both books agree."""

import asyncio
import json
from contextlib import aclosing
from pathlib import Path

import aiohttp
import msgspec
import pytest
from api_server import Endless, serving, talker

from perilune.accounts.accounts import Accounts
from perilune.agent.solo import run_agent
from perilune.agent.workspace import DirectoryWorkspace
from perilune.api.serve import Server
from perilune.backends.base import complete
from perilune.backends.choose import open_backend
from perilune.backends.connect import probe
from perilune.backends.metered import MeteredBackend
from perilune.backends.scripted import ScriptedBackend, scripted_entry
from perilune.chat.messages import Message, Request, Tool
from perilune.errors import BackendAuth
from perilune.settings import Settings

TOOL = Tool(name="weather", parameters={"type": "object", "properties": {"place": {"type": "string"}}})


def ask(**more: object) -> Request:
    messages = (Message(role="user", content="Grüße, hello"),)
    return Request(model="scripted", messages=messages, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("request_", [ask(), ask(thinking=False), ask(tools=(TOOL,))], ids=str)
async def test_an_answer_passes_through_unchanged(tmp_path: Path, request_: Request) -> None:
    model = talker()
    async with serving(tmp_path / "far", model) as api:
        near = Settings(home=tmp_path / "near", model_url=api.url, model_key=api.key, model_name="scripted")
        backend = await open_backend(near)
        with Accounts.open(near.home, near) as accounts:
            metered = MeteredBackend(backend, accounts, accounts.local_principal())
            completion, charge = await metered.complete(request_)
            assert accounts.verify() == ()
        await backend.close()
        there = await complete(model, request_)
        assert completion.message == there.message
        assert completion.finish_reason == there.finish_reason
        (row,) = api.accounts.usage_rows()
        assert (row.charge, row.cached, row.output) == (
            charge.nano_usd,
            charge.buckets.cached,
            charge.buckets.output,
        )
        assert api.rows() == ["finished"]


@pytest.mark.parametrize("policy", ["open", "clamp", "strict"])
async def test_a_rename_over_the_wire(tmp_path: Path, policy: str) -> None:
    """The rename profile's own temperature is not sent where the far side would refuse it."""
    far = msgspec.structs.replace(scripted_entry(), sampling_policy=policy, sampling={"top_p": 0.5})
    work = tmp_path / "work"
    work.mkdir()
    (work / "a.py").write_text("foo = 1\n" * 6)
    async with serving(tmp_path / "far", ScriptedBackend(entry=far)) as api:
        near = Settings(home=tmp_path / "near", model_url=api.url, model_key=api.key)
        backend = await open_backend(near)
        (entry,) = await backend.models()
        assert (entry.goals, entry.subagent_profile, entry.context_length) == ("rename", "rename", 8192)
        assert (entry.sampling_policy, entry.accepted["top_p"]) == (policy, 0.5)
        result = await run_agent(
            backend, "rename", "Rename foo to bar.", "a.py", DirectoryWorkspace(work), model=entry.id
        )
        await backend.close()
        assert len(api.rows()) == result.steps
    assert result.status == "succeeded"
    assert (work / "a.py").read_text() == "bar = 1\n" * 6


async def test_leaving_here_ends_the_call_there(tmp_path: Path) -> None:
    endless = Endless()
    async with serving(tmp_path / "far", endless) as api:
        near = Settings(home=tmp_path / "near", model_url=api.url, model_key=api.key, model_name="scripted")
        backend = await open_backend(near)
        with Accounts.open(near.home, near) as accounts:
            call = MeteredBackend(backend, accounts, accounts.local_principal()).call(ask())
            async with aclosing(call):
                await anext(call)
            assert call.charge is not None and call.charge.outcome == "aborted"
        await backend.close()
        for _ in range(200):
            if endless.closed:
                break
            await asyncio.sleep(0.02)
        assert endless.closed == 1


async def test_connecting_to_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "far", talker()) as api:
        found = await probe(api.url, api.key)
        assert (found.name, found.counts_tokens, found.context_length) == ("scripted", True, 8192)
        assert found.answer == "You said: Say ok."
        with pytest.raises(BackendAuth):
            await probe(api.url, "plk_wrong")


async def test_a_key_that_no_backend_may_serve_hears_so(tmp_path: Path) -> None:
    """Over HTTP, streamed or not: 403 and no other endpoint's answer."""
    async with serving(tmp_path / "far", talker()) as far:
        near = Settings(
            home=tmp_path / "near",
            backends=({"name": "far", "url": far.url, "key": far.key, "region": "us"},),
            access=({"regions": ["eu"]},),
            port=0,
        )
        backend = await open_backend(near)
        near.home.mkdir()
        with Accounts.open(near.home, near) as accounts:
            server = Server(near, backend, accounts)
            await server.start()
            key = json.loads((near.home / "keys.json").read_text())["project_key"]
            async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
                for stream in (False, True):
                    body = {
                        "model": "scripted",
                        "stream": stream,
                        "messages": [{"role": "user", "content": "hi"}],
                    }
                    async with session.post(f"{server.base_url}/chat/completions", json=body) as response:
                        assert response.status == 403
                        assert (await response.json())["error"]["type"] == "permission_denied_error"
            await server.stop(grace_s=1)
        assert far.rows() == []
