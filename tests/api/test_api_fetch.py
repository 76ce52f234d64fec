"""Nothing is fetched, opened or run because a client names it."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from api_server import serving, talker
from raw_http import ask, bearer
from tests.backends.loopback import GOOD, Endpoint

from perilune.accounts.accounts import Accounts
from perilune.accounts.desk.acts import ACTS
from perilune.api.admin import admin_acts
from perilune.api.multipart import boundary_of, form_of
from perilune.backends.base import ModelEntry
from perilune.backends.router import Router
from perilune.backends.scripted import scripted_entry
from perilune.chat.wire_fields import CallBody
from perilune.errors import InputError
from perilune.settings import Settings

SEEING: ModelEntry = msgspec.structs.replace(scripted_entry(), modalities=("text", "image", "video"))


def urls(port: int, secret: Path) -> list[str]:
    """Of a server that listens here, and of a file, in spellings that parsers disagree on."""
    here = f"127.0.0.1:{port}"
    return [
        f"http://{here}/a.png",
        f"https://{here}/a.png",
        f"HTTP://{here}/a.png",
        f" http://{here}/a.png",
        f"//{here}/a.png",
        f"http:\\\\{here}\\a.png",
        f"http://data:image@{here}/png;base64,AA==",
        f"http://localhost:{port}/a.png",
        f"http://2130706433:{port}/a.png",
        f"http://[::ffff:127.0.0.1]:{port}/a.png",
        f"ftp://{here}/a.png",
        f"file://{secret}",
        str(secret),
        f"ms://../../{secret}",
        f"ms://{secret}",
        f"ms://http://{here}/a",
        f"data://{here}/a.png",
        f"data:image/png,http://{here}/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "gopher://x",
        "",
    ]


async def test_no_url_of_a_client_is_fetched(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("canary of a file")
    async with Endpoint([GOOD]) as there, serving(tmp_path / "home", talker(SEEING)) as api:
        async with aiohttp.ClientSession() as web:
            for url in urls(there.port, secret):
                for kind in ("image_url", "video_url"):
                    for given in (url, {"url": url}):
                        for path in ("chat/completions", "tokenizers/estimate-token-count"):
                            part = {"type": kind, kind: given}
                            body = {"model": "scripted", "messages": [{"role": "user", "content": [part]}]}
                            async with web.post(f"{api.url}/{path}", json=body, headers=api.auth) as answer:
                                told = await answer.text()
                                assert answer.status == 400, (url, told)
                            assert "canary" not in told and "refused" not in told.lower()
        assert there.heard == [] and api.rows() == []


RISKY = {"command", "cmd", "args", "argv", "env", "shell", "url", "uri", "host", "path", "file", "webhook",
         "callback", "template", "module", "script", "header", "base"}  # fmt: skip
"""Words of fields by which a caller would name something to run, to reach or to open."""


def words_of(kind: type[msgspec.Struct]) -> set[str]:
    return {word for name in kind.__struct_fields__ for word in name.split("_")}


def test_no_field_names_a_command_a_url_or_a_file(tmp_path: Path) -> None:
    """Of all bodies that the doors read: the acts of the admin door, and chat calls. Backends, tool servers
    and whatever runs come from the operator's file alone."""
    acts = admin_acts(Router([talker()]))
    assert acts.keys() > ACTS.keys()
    for name, act in acts.items():
        assert not words_of(act.fields) & RISKY, name
        assert act.fields.__struct_config__.forbid_unknown_fields, name
    assert not words_of(CallBody) & (RISKY - {"template"})  # chat_template_kwargs: switches, no template


async def test_a_chat_template_of_a_client_is_not_rendered(tmp_path: Path) -> None:
    async with serving(tmp_path, talker()) as api, aiohttp.ClientSession() as web:
        answers = []
        for more in ({}, {"chat_template": "{{ 7 * 7 }}"}, {"chat_template_kwargs": {"system": "{{ 7*7 }}"}}):
            text = "{{ 7 * 7 }}{% for x in [] %}"
            body: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": text}]}
            async with web.post(f"{api.url}/chat/completions", json=body | more, headers=api.auth) as answer:
                answers.append((await answer.json())["choices"][0]["message"]["content"])
        assert answers == ["You said: {{ 7 * 7 }}{% for x in [] %}"] * 3


async def test_a_form_is_no_chat_call(tmp_path: Path) -> None:
    async with serving(tmp_path, talker()) as api:
        port = int(api.root.rpartition(":")[2])
        for path in ("/v1/chat/completions", "/v1/tokenizers/estimate-token-count"):
            for kind in ("multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
                answer = await ask(port, f"POST {path}", bearer(api.key), kind=kind)
                assert answer.status == 415 and answer.kind == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        b"--x" + b"-" * 5_000_000,
        b"--x\r\n" + b"\r\n--x\r\n" * 500_000,
        b"\r\n" * 2_500_000 + b"--x",
        b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n" + b"\r\n--" * 1_000_000,
        b"--x\r\n" + b"A: b\r\n" * 800_000 + b"\r\n\r\n--x--",
        b"--x\r\nContent-Disposition: form-data;" + b" x=y;" * 1_600 + b"\r\n\r\n\r\n--x--",
    ],
)
def test_a_form_made_to_take_long_does_not(body: bytes) -> None:
    began = time.process_time()
    with contextlib.suppress(InputError):
        form_of(body, boundary_of("multipart/form-data; boundary=x"))
    assert time.process_time() - began < 1


async def test_a_top_up_is_entered_once_and_by_operators_only(tmp_path: Path) -> None:
    """No door takes word of payments from outside, so no empty secret can let a forged one in."""
    with Accounts.open(tmp_path, Settings(home=tmp_path)) as accounts:
        for _ in range(3):
            accounts.wallets.enter(1, "deposit", 5, "event-1", actor="test")
        assert accounts.organisations.state(1).cash == 5
    assert not [name for name in ACTS if json.dumps(name).count("hook") or "pay" in name]
