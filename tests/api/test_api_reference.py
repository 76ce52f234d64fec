"""The OpenAPI documents tell of every route and of nothing else; the page needs nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from api_server import Strange, serving, talker

from perilune.accounts.accounts import Accounts
from perilune.api.admin import admin_acts, admin_doors
from perilune.api.app import doors
from perilune.api.doors import Door
from perilune.api.metrics import HttpCounters
from perilune.api.reference.answers import ChatChunk
from perilune.api.reference.document import REASONS, admin_document, public_document
from perilune.api.reference.notes import CHAT
from perilune.api.reference.operations import OPERATIONS
from perilune.api.reference.page import page
from perilune.chat.wire_fields import CallBody
from perilune.settings import Settings


@pytest.fixture
def table(tmp_path: Path) -> Iterable[tuple[Door, ...]]:
    settings = Settings.load(tmp_path, {}, {})
    with Accounts.open(tmp_path, settings) as accounts:
        yield doors(settings, Strange(), accounts)


def described(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}


def served(table: Iterable[Door]) -> set[tuple[str, str]]:
    return {(door.method, door.path.replace(":path}", "}")) for door in table}


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*(references(one) for one in value.values()))
    return set().union(*(references(one) for one in value)) if isinstance(value, list) else set()


def resolves(document: dict[str, Any], reference: str) -> bool:
    found: Any = document
    for piece in reference.removeprefix("#/").split("/"):
        found = found.get(piece, {})
    return bool(found)


def check_whole(document: dict[str, Any]) -> None:
    """References lead somewhere, names are unique, every guarded route says what a wrong key gets."""
    assert all(resolves(document, one) for one in references(document))
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    names = [one["operationId"] for one in operations]
    assert len(set(names)) == len(names)
    for path, methods in document["paths"].items():
        for one in methods.values():
            named = {each["name"] for each in one.get("parameters", ()) if each["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
    for one in operations:
        assert one["summary"] and one["responses"]["200"]["content"]
        guarded = {"401", "403", "429"} <= one["responses"].keys()
        assert guarded == (one["security"] == [{"key": []}]), one["operationId"]
        assert ("requestBody" in one) == ("413" in one["responses"])


def test_the_document_and_the_routes_are_the_same(table: tuple[Door, ...]) -> None:
    document = public_document(table)
    assert described(document) == served(table)
    assert OPERATIONS.keys() == {(door.method, door.path) for door in table}
    check_whole(document)


def test_a_route_that_is_not_told_of_is_found(table: tuple[Door, ...]) -> None:
    more = (*table, Door("GET", "/secret", "chat", Strange))  # type: ignore[arg-type]
    assert described(public_document(more)) != served(more)


def test_the_admin_document_and_its_routes_are_the_same(tmp_path: Path) -> None:
    with Accounts.open(tmp_path, Settings.load(tmp_path, {}, {})) as accounts:
        table = admin_doors(Strange(), accounts, HttpCounters())
    document = admin_document(table, admin_acts(Strange()))
    assert described(document) == served(table)
    check_whole(document)
    enter = document["components"]["schemas"]["NewEntry"]
    assert enter["required"] == ["kind", "amount"] and enter["additionalProperties"] is False


def test_every_field_of_a_chat_body_is_told_of(table: tuple[Door, ...]) -> None:
    assert CHAT.keys() == set(CallBody.__struct_fields__)
    body = public_document(table)["components"]["schemas"]["CallBody"]
    assert all(field["description"] for field in body["properties"].values())
    assert body["properties"]["temperature"]["maximum"] == 2
    assert body["required"] == ["model", "messages"]


def test_every_refusal_is_used(table: tuple[Door, ...]) -> None:
    used = {reference.rpartition("/")[2] for reference in references(public_document(table)["paths"])}
    assert {str(status) for status in REASONS} <= used


async def test_both_are_served_to_all_who_ask(tmp_path: Path) -> None:
    async with serving(tmp_path, talker()) as api, aiohttp.ClientSession() as web:
        async with web.get(api.root + "/openapi.json") as answer:
            assert answer.status == 200 and answer.content_type == "application/json"
            document = await answer.json()
        assert document["openapi"] == "3.1.0" and "/v1/chat/completions" in document["paths"]
        async with web.get(api.root + "/docs") as answer:
            assert answer.status == 200 and answer.content_type == "text/html"
            policy, text = answer.headers["content-security-policy"], await answer.text()
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        style = re.search(r"<style>(.*)</style>", text, re.DOTALL)
        assert style is not None
        digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
        for path in document["paths"]:
            assert f"{path}</code>" in text
        assert len(text) < 60_000 and not re.search(r"<script|src=|href=\"(http|//)|url\(|style=", text)


async def test_the_operator_may_turn_them_off(tmp_path: Path) -> None:
    async with serving(tmp_path, talker(), api_docs=False) as api, aiohttp.ClientSession() as web:
        for path in ("/openapi.json", "/docs"):
            async with web.get(api.root + path) as answer:
                assert answer.status == 404


def test_links_on_the_page_lead_somewhere_and_text_is_escaped(table: tuple[Door, ...]) -> None:
    document = public_document(table)
    document["info"]["description"] = "<script>alert(1)</script> & `x<y`"
    text = page(document)
    assert "<script" not in text and "<code>x&lt;y</code>" in text
    anchors = set(re.findall(r'href="#([^"]+)"', text))
    assert anchors and anchors <= set(re.findall(r'id="([^"]+)"', text))


async def test_streams_are_as_told(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    said: dict[str, Any] = {
        "model": "scripted",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
    }
    async with serving(tmp_path, talker()) as api, aiohttp.ClientSession() as web:
        for fields in ({}, {"tools": [tool]}, {"stream_options": {"include_usage": True}}):
            url = api.root + "/v1/chat/completions"
            async with web.post(url, json=said | fields, headers=api.auth) as answer:
                frames = (await answer.text()).removesuffix("data: [DONE]\n\n").strip().split("\n\n")
            assert len(frames) > 3
            for frame in frames:
                msgspec.json.decode(frame.removeprefix("data: "), type=ChatChunk)
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(
                frames[0].replace('"choices"', '"chioces"').removeprefix("data: "), type=ChatChunk
            )
