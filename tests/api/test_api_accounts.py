"""Balance, estimate, limits and metrics over a real socket."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from api_server import Api, Strange, serving, talker

from perilune.chat.messages import Event, Finished, Request, TextDelta, Usage

HI: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"
USD = 1_000_000_000


@pytest.fixture
async def web() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


async def ask(web: aiohttp.ClientSession, api: Api, **more: Any) -> tuple[int, Any, Any]:
    async with web.post(api.root + CHAT, json=HI | more, headers=api.auth) as answer:
        return answer.status, json.loads(await answer.read()), answer.headers


async def get(web: aiohttp.ClientSession, api: Api, path: str, key: str = "") -> str:
    headers = {"Authorization": f"Bearer {key}"} if key else api.auth
    async with web.get(api.root + path, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.text()


class Gated(Strange):
    """Uses exactly what was reserved (7 tokens in, 10 out), and answers nobody before `gate` opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.changed = asyncio.Condition()
        self.running = 0
        self.most = 0

    async def has_running(self, number: int) -> None:
        """Everybody is decided; who was let in is on the way here. Never were more."""
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: self.running >= number)
        assert self.running == self.most == number

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        self.running += 1
        self.most = max(self.most, self.running)
        async with self.changed:
            self.changed.notify_all()
        try:
            await self.gate.wait()
            yield TextDelta("done")
            yield Finished("stop", Usage(prompt_tokens=7, completion_tokens=10))
        finally:
            self.running -= 1


BOUND = 7 * 950 + 10 * 4000


async def test_two_hundred_at_once_on_a_balance_for_ten(tmp_path: Path, web: aiohttp.ClientSession) -> None:
    backend = Gated()
    async with serving(tmp_path, backend, prepaid=True, activation_usd=0) as api:
        api.accounts.wallets.enter(1, "deposit", 10 * BOUND, "r", actor="test")
        tasks = [asyncio.ensure_future(ask(web, api, max_tokens=10)) for _ in range(200)]
        waiting = set(tasks)
        while len(waiting) > 10:  # all but the ten are refused before the first one is answered
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await backend.has_running(10)
        backend.gate.set()
        answers = await asyncio.gather(*tasks)
        assert sorted(status for status, _, _ in answers) == [200] * 10 + [429] * 190
        refused = [(body["error"]["type"], headers) for status, body, headers in answers if status == 429]
        assert {kind for kind, _ in refused} == {"exceeded_current_quota_error"}
        assert all(headers["x-should-retry"] == "false" for _, headers in refused)
        assert api.rows() == ["finished"] * 10
        state = api.accounts.organisations.state(1)
        assert (state.cash, state.reserved) == (0, 0)


async def test_the_tier_s_concurrency_exactly(tmp_path: Path, web: aiohttp.ClientSession) -> None:
    backend = Gated()
    async with serving(tmp_path, backend, tier="kimi-1") as api:
        tasks = [asyncio.ensure_future(ask(web, api, max_tokens=10)) for _ in range(80)]
        waiting = set(tasks)
        while len(waiting) > 50:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await backend.has_running(50)
        backend.gate.set()
        answers = await asyncio.gather(*tasks)
        refused = [(body["error"], headers) for status, body, headers in answers if status == 429]
        assert len(refused) == 30
        for error, headers in refused:
            assert error["type"] == "rate_limit_reached_error"
            assert "max concurrency: 50, please try again after 1 seconds" in error["message"]
            assert headers["retry-after"] == "1"
        assert (await ask(web, api, max_tokens=10))[0] == 200
        assert set(api.rows()) == {"finished"}


TOKENS = 7 + 10
"""Of one call: its prompt and the most that its answer may have."""


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ("rpm = 10", "max RPM: 10, please try again after"),
        (f"tpm = {10 * TOKENS + 16}", f"TPM rate limit, current:{10 * TOKENS}, limit:{10 * TOKENS + 16}"),
        (f"tpd = {10 * TOKENS}", f"TPD rate limit, current:{10 * TOKENS}, limit:{10 * TOKENS}"),
        ("concurrency = 10", "max concurrency: 10, please try again after 1 seconds"),
    ],
)
async def test_of_two_hundred_at_once_exactly_the_tier_s_ten(
    tmp_path: Path, web: aiohttp.ClientSession, limits: str, words: str
) -> None:
    book = {"concurrency": 0, "rpm": 0, "tpm": 0, "tpd": 0} | dict([limits.split(" = ")])
    lines = "\n".join(f"{name} = {value}" for name, value in book.items())
    (tmp_path / "tiers.toml").write_text(f'[[tier]]\nname = "ten"\n{lines}\n')
    backend = Gated()
    async with serving(tmp_path / "home", backend, tier="ten", tier_book=str(tmp_path / "tiers.toml")) as api:
        tasks = [asyncio.ensure_future(ask(web, api, max_tokens=10)) for _ in range(200)]
        waiting = set(tasks)
        while len(waiting) > 10:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await backend.has_running(10)
        backend.gate.set()
        answers = await asyncio.gather(*tasks)
        assert sorted(status for status, _, _ in answers) == [200] * 10 + [429] * 190
        refused = [body["error"] for status, body, _ in answers if status == 429]
        assert all(error["type"] == "rate_limit_reached_error" for error in refused)
        assert all(words in error["message"] for error in refused), refused[0]
        assert api.rows() == ["finished"] * 10


async def test_the_tier_s_requests_a_minute(tmp_path: Path, web: aiohttp.ClientSession) -> None:
    async with serving(tmp_path, talker(), tier="kimi-0") as api:
        for _ in range(3):
            assert (await ask(web, api))[0] == 200
        status, body, headers = await ask(web, api)
        assert (status, body["error"]["type"]) == (429, "rate_limit_reached_error")
        assert re.search(r"max RPM: 3, please try again after \d+ seconds", body["error"]["message"])
        assert 1 <= int(headers["retry-after"]) <= 60


async def test_the_balance_in_the_official_shape(tmp_path: Path, web: aiohttp.ClientSession) -> None:
    async with serving(tmp_path, talker(), prepaid=True) as api:
        assert (await ask(web, api))[1]["error"]["message"].startswith(
            "Your account org-1<ak-2> is suspended"
        )
        api.accounts.wallets.enter(1, "deposit", 3 * USD + 19_999, "r", actor="test")
        api.accounts.wallets.enter(1, "voucher", 46_588_930_000, "v", actor="test")
        assert json.loads(await get(web, api, "/v1/users/me/balance")) == {
            "code": 0,
            "data": {
                "available_balance": 49.58894,
                "voucher_balance": 46.58893,
                "cash_balance": 3.00001,
            },
            "scode": "0x0",
            "status": True,
        }
        assert (await ask(web, api))[0] == 200
        api.accounts.wallets.enter(1, "correction", -4 * USD, "c", actor="test")
        data = json.loads(await get(web, api, "/v1/users/me/balance"))["data"]
        assert data["cash_balance"] < 0 and data["available_balance"] == data["voucher_balance"] > 46


async def test_the_estimate_is_the_prompt_that_is_billed(tmp_path: Path, web: aiohttp.ClientSession) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    async with serving(tmp_path, talker()) as api:
        for more in ({}, {"tools": tools}, {"thinking": {"type": "disabled"}}):
            used = (await ask(web, api, **more))[1]["usage"]["prompt_tokens"]
            path = api.root + "/v1/tokenizers/estimate-token-count"
            async with web.post(path, json=HI | more, headers=api.auth) as answer:
                assert await answer.json() == {"data": {"total_tokens": used}}
        async with web.post(path, json=HI | {"model": "gpt"}, headers=api.auth) as answer:
            assert answer.status == 404
        assert len(api.rows()) == 3  # estimates are no calls


async def test_metrics_count_what_happened(tmp_path: Path, web: aiohttp.ClientSession) -> None:
    async with serving(tmp_path, talker(), tier="kimi-0") as api:
        for _ in range(4):
            await ask(web, api)
        async with web.get(api.root + "/secret/plk_x", headers=api.auth) as answer:
            assert answer.status == 404
        text = await get(web, api, "/metrics", api.admin_key)
    lines = text.splitlines()
    assert f'perilune_http_requests_total{{route="{CHAT}",method="POST",status="200"}} 3' in lines
    assert f'perilune_http_requests_total{{route="{CHAT}",method="POST",status="429"}} 1' in lines
    assert 'perilune_http_requests_total{route="other",method="GET",status="404"} 1' in lines
    assert f'perilune_http_request_seconds_count{{route="{CHAT}"}} 4' in lines
    assert f'perilune_http_request_seconds_bucket{{route="{CHAT}",le="+Inf"}} 4' in lines
    assert 'perilune_calls_total{price="kimi-k2.6@2026-04-20",outcome="finished"} 3' in lines
    assert 'perilune_refused_total{type="rate_limit_reached_error"} 1' in lines
    assert "perilune_calls_running 0" in lines
    assert "plk_" not in text
    named = re.compile(r"(# (HELP|TYPE) \w+ .+|\w+(\{(\w+=\"[^\"]*\",?)+\})? [0-9.]+)")
    assert all(named.fullmatch(line) for line in lines)
