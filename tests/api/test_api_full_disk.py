"""A disk that is full: calls are refused in words before anything is asked of the model, and go on later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
from api_server import Api, serving, talker

from perilune.chat.messages import Request


async def test_calls_are_refused_while_it_is_full_and_go_on_when_there_is_room(tmp_path: Path) -> None:
    asked: list[Request] = []
    backend = talker()
    answer = backend.answer

    def counted(request: Request) -> Any:
        asked.append(request)
        return answer(request)

    backend.answer = counted  # type: ignore[method-assign]
    async with serving(tmp_path, backend) as api, aiohttp.ClientSession() as web:
        bound(api, room=0)
        seen: list[int] = []
        while 507 not in seen and len(seen) < 500:
            seen.append((await call(web, api))[0])
        assert set(seen) == {200, 507} and 200 in seen, "the disk never was full"
        before = len(asked)
        status, body = await call(web, api)
        assert (status, body["error"]["type"]) == (507, "storage_full")
        assert "no space left" in body["error"]["message"]
        assert (await call(web, api, stream=True))[0] == 507
        assert len(asked) == before
        bound(api, room=1000)
        assert api.rows() == ["finished"] * seen.count(200)
        assert (await call(web, api))[0] == 200
        assert api.rows()[0] == "finished"


def bound(api: Api, room: int) -> None:
    """Let the database grow by so many pages and no more."""
    store = api.accounts.store
    pages = store.read("PRAGMA page_count")[0][0]
    with store._committing:
        store._connection.execute(f"PRAGMA max_page_count={pages + room}").fetchone()


async def call(web: aiohttp.ClientSession, api: Api, **more: Any) -> tuple[int, Any]:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]} | more
    async with web.post(f"{api.url}/chat/completions", json=body, headers=api.auth) as got:
        text = await got.text()
        return got.status, json.loads(text) if got.content_type == "application/json" else text
