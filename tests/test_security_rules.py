"""docs/security-rules.md is complete, and the tests that it names are there."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "security-rules.md"
PACKAGE = ROOT / "src" / "perilune"

INCIDENTS = {f"incident-{number}" for number in range(1, 21)}
RULES = INCIDENTS | {
    "CVE-2026-42208", "CVE-2026-42271", "CVE-2026-48710", "CVE-2026-49468", "CVE-2026-47101",
    "CVE-2026-12797", "GHSA-xqmj-j6mv-4862", "CVE-2024-6587", "CVE-2024-8984", "CVE-2026-41432",
    "CVE-2026-25591", "CVE-2026-30886", "CVE-2026-24779", "stolen-release", "trusted-publishing",
    "under-25-packages", "guardrails", "media-local", "media-parsed-once", "media-decoded-safely",
    "media-remote", "way-out", "key-form", "key-digest", "key-shown-once", "key-last-used", "key-revoked",
    "negative-cache", "cache-generation", "passwords", "endpoint-keys", "endpoint-keys-encrypted",
    "admin-secret", "admin-door", "sessions", "page-policy", "audit", "home-private", "body-size",
    "body-limit-32-mb", "body-encoding", "head-size", "head-time", "body-stall", "idle", "json-depth",
    "messages-and-tools", "strangers", "probes", "connections", "slow-reader", "comments", "cost-buckets",
    "cost-example", "cost-missing", "cost-anthropic", "LLM01", "LLM02", "LLM03", "LLM05", "LLM06", "LLM07",
    "LLM10", "API1", "API2", "API4", "API5", "API6", "API7", "API8", "API9", "API10",
}  # fmt: skip
"""All that the incidents of others and the standards that we follow ask for, by name."""


def rows(text: str) -> list[tuple[list[str], list[str]]]:
    """The rules that a row is about, and its other cells."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| **") else []
        if cells:
            found.append((re.findall(r"\*\*([\w-]+)\*\*", cells[0]), cells[1:]))
    return found


def faults(text: str) -> list[str]:
    """What is wrong with the page, in words."""
    table = rows(text)
    named = [rule for rules, _ in table for rule in rules]
    wrong = [f"{rule} is missing" for rule in sorted(RULES - set(named))]
    wrong += [f"{rule} is not known" for rule in sorted(set(named) - RULES)]
    wrong += [f"{rule} stands there twice" for rule in sorted({one for one in named if named.count(one) > 1})]
    for rules, cells in table:
        if len(cells) == 1:  # a reason
            if len(cells[0].split()) < 8:
                wrong.append(f"{rules[0]} has no reason")
            continue
        places = re.findall(r"`([a-z_/.]+)`", cells[0])
        wrong += [f"{rules[0]}: there is no {place}" for place in places if not _place(place)]
        if not places and cells[0] != "everywhere":
            wrong.append(f"{rules[0]} is held nowhere")
        tests = re.findall(r"`([\w/]+\.py)::(\w+)`", cells[1])
        wrong += [
            f"{rules[0]}: there is no {file}::{name}" for file, name in tests if name not in names_in(file)
        ]
        if not tests or cells[1].count("`") != 2 * len(tests):
            wrong.append(f"{rules[0]} has no test")
    return wrong


def _place(name: str) -> bool:
    return (PACKAGE / name).exists() or (ROOT / name).exists()


@functools.cache
def names_in(file: str) -> frozenset[str]:
    """The tests of a file that `make test` runs, or `make soak` and `make crash`."""
    path = ROOT / "tests" / file
    if not path.is_file():
        return frozenset()
    functions = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def test_every_rule_is_held_by_a_test_or_has_its_reason() -> None:
    assert faults(PAGE.read_text(encoding="utf-8")) == []


def test_the_page_is_linked() -> None:
    assert "docs/security-rules.md" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_a_wrong_page_is_found() -> None:
    text = PAGE.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| **idle**"))
    test = "api/test_api_connections.py::test_an_idle_connection_is_closed"
    reason = next(line for line in text.splitlines() if line.startswith("| **passwords**"))
    for wrong, told in (
        (text.replace(row, ""), ["idle is missing"]),
        (text.replace("**idle**", "**idl**"), ["idle is missing", "idl is not known"]),
        (text.replace(row, f"{row}\n{row}"), ["idle stands there twice"]),
        (text.replace(test, f"{test}d"), [f"idle: there is no {test}d"]),
        (text.replace(f"`{test}`", "none"), ["idle has no test"]),
        (text.replace(row, row.replace("api/serve.py", "api/gone.py")), ["idle: there is no api/gone.py"]),
        (text.replace(reason, "| **passwords** Such. | No. |"), ["passwords has no reason"]),
    ):
        assert faults(wrong) == told
