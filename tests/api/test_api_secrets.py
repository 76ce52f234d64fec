"""What is secret stays where it belongs: no prompt, answer or key is logged, no key stands in what a model
reads or a server tells."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from admin_server import running
from api_server import Failing, Slow, serving, talk
from tests.swarm.session_parts import Bench

from perilune.accounts.keys import new_secret
from perilune.backends.scripted import Reply, ScriptedBackend
from perilune.chat.messages import Request
from perilune.errors import BackendUnreachable
from perilune.settings import Settings

PROMPT = "canary-of-a-prompt"
ANSWER = "canary-of-an-answer"
FILE = "canary-of-a-file"


def answering(request: Request) -> Reply:
    return talk(request) if request.tools else ANSWER


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": PROMPT}]} | fields


async def test_no_prompt_no_answer_and_no_key_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the most talkative level, for calls that go well and for all ways in which they do not."""
    caplog.set_level(logging.DEBUG)
    stranger = new_secret()
    tool = {"type": "function", "function": {"name": PROMPT, "parameters": {"type": "object"}}}
    bodies: list[Any] = [
        chat(),
        chat(stream=True),
        chat(tools=[tool]),
        chat(messages=[{"role": PROMPT, "content": PROMPT}]),
        chat(messages=[{"role": "user", "content": [{"type": PROMPT, "text": PROMPT}]}]),
        chat(model=PROMPT),
        chat(stop=[PROMPT * 9]),
        chat(tools=[tool | {"function": {"name": f"{PROMPT}!"}}]),
        chat(temperature=PROMPT),
    ]
    async with serving(tmp_path / "home", ScriptedBackend(answering)) as api, aiohttp.ClientSession() as web:
        statuses = set()
        for key in (api.key, api.admin_key, stranger):
            headers = {"Authorization": f"Bearer {key}"}
            for body in bodies:
                async with web.post(f"{api.url}/chat/completions", json=body, headers=headers) as answer:
                    await answer.read()
                    statuses.add(answer.status)
            for data in (b"{" + PROMPT.encode(), PROMPT.encode() * 3):
                kind = headers | {"Content-Type": "application/json"}
                async with web.post(f"{api.url}/chat/completions", data=data, headers=kind) as answer:
                    statuses.add(answer.status)
            form = aiohttp.FormData({"purpose": "file-extract"})
            form.add_field("file", FILE.encode(), filename=f"{FILE}.txt")
            async with web.post(f"{api.url}/files", data=form, headers=headers) as answer:
                statuses.add(answer.status)
            async with web.get(f"{api.url}/models?key={key}", headers=headers) as answer:
                statuses.add(answer.status)
        assert statuses == {200, 400, 401, 403, 404}
        secrets = (PROMPT, ANSWER, FILE, api.key, api.admin_key, stranger)
    errors = (BackendUnreachable("it is gone"), ValueError("our defect"))
    for number, error in enumerate(errors):
        for words in (0, 2):
            home = tmp_path / f"{number}{words}"
            async with serving(home, Failing(error, words)) as api, aiohttp.ClientSession() as web:
                body = chat(stream=True)
                async with web.post(f"{api.url}/chat/completions", json=body, headers=api.auth) as answer:
                    await answer.read()
                secrets += (api.key,)
    assert "POST /v1/chat/completions 200" in caplog.text and "our defect" in caplog.text
    assert [one for one in secrets if one in caplog.text] == []


async def test_the_admin_door_logs_no_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with running(tmp_path / "home") as door:
        _, made = await door.act("keys/create", name="ci")
        for name in ("keys/list", "audit/list", "account/show", "ledger/calls", "backend/list"):
            _, told = await door.act(name)
            assert made["key"] not in json.dumps(told) and door.keys["admin_key"] not in json.dumps(told)
        async with aiohttp.ClientSession() as web:
            headers = {"Authorization": f"Bearer {door.keys['admin_key']}"}
            for url in (f"{door.url}/backend/models", door.url.replace("/admin", "/metrics")):
                async with web.get(url, headers=headers) as answer:
                    assert "plk_" not in await answer.text()
        secrets = (made["key"], *door.keys.values())
    assert "/admin/keys/create" in caplog.text
    assert [one for one in secrets if one in caplog.text] == []


async def test_metrics_and_books_hold_no_prompt(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with serving(home, Slow(answering)) as api, aiohttp.ClientSession() as web:
        for body in (chat(), chat(stream=True), chat(stop=[PROMPT * 9])):
            async with web.post(f"{api.url}/chat/completions", json=body, headers=api.auth) as answer:
                await answer.read()
        headers = {"Authorization": f"Bearer {api.admin_key}"}
        async with web.get(f"{api.root}/metrics", headers=headers) as answer:
            text = await answer.text()
        assert "perilune_" in text and PROMPT not in text
        found = [path for path in home.rglob("*") if path.is_file() and _holds(path, PROMPT, ANSWER)]
        assert found == []


def _holds(path: Path, *words: str) -> bool:
    return any(word.encode() in path.read_bytes() for word in words)


async def test_no_key_stands_in_what_a_model_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a system prompt, a tool's schema or a tool's result of a whole swarm session."""
    monkeypatch.setenv("PERILUNE_API_KEY", "canary-of-the-environment")
    read: list[str] = []

    class Listening(ScriptedBackend):
        def stream(self, request: Request) -> Any:
            read.append(repr(request))
            return super().stream(request)

    bench = Bench(tmp_path, Listening())
    bench.settings = Settings(
        home=bench.home, api_key="canary-of-a-key", model_key="canary-of-a-key", searxng_url="http://canary"
    )
    assert (await bench.run(await bench.plan())).status == "complete"
    assert len(read) > 3 and "rename" in read[0].lower()
    assert [text for text in read if "canary" in text or "plk_" in text] == []
    assert not any(_holds(path, "canary") for path in bench.home.rglob("*") if path.is_file())
