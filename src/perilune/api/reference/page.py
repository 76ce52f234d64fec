"""The reference as one page of HTML: no script, nothing from elsewhere, readable as it stands."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Any

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:0 auto;padding:1rem 1.25rem 6rem;
color:#1b1f24;background:#fff}
h1{margin:.5rem 0}h2{margin-top:2.5rem;border-bottom:1px solid #ccd;padding-bottom:.25rem}
code,pre{font:14px/1.45 ui-monospace,monospace}nav a{margin-right:1rem}
article{margin:1.5rem 0;padding:.5rem 1rem;border:1px solid #ccd;border-radius:8px}
h3{margin:.25rem 0;font-size:1rem;overflow-wrap:anywhere}.m{color:#0b57d0;margin-right:.5rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;
padding:.25rem .75rem .25rem 0;border-top:1px solid #e6e8ee;overflow-wrap:anywhere}
th{font-weight:600}summary{cursor:pointer}
@media(prefers-color-scheme:dark){body{color:#e4e7ec;background:#14171c}article,h2,td,th{border-color:#343a46}
a,.m{color:#8ab4f8}}
"""
POLICY = (
    "default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def policy() -> str:
    """The content security policy: this one style and nothing else."""
    return POLICY.format(digest=base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode())


def page(document: dict[str, Any]) -> str:
    info, schemas = document["info"], document["components"]["schemas"]
    groups = "".join(_group(tag["name"], document) for tag in document["tags"])
    links = "".join(f'<a href="#{escape(tag["name"])}">{escape(tag["name"])}</a>' for tag in document["tags"])
    shapes = "".join(_shape(name, schema) for name, schema in sorted(schemas.items()))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}: '
        f'reference</title><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f'<p>{_text(info["description"])} <a href="openapi.json">openapi.json</a></p>'
        f"<p>Send <code>Authorization: Bearer plk_...</code></p>"
        f'<nav>{links}<a href="#shapes">Shapes</a></nav>'
        f'<main>{groups}<h2 id="shapes">Shapes</h2>{shapes}</main></body></html>'
    )


def _group(name: str, document: dict[str, Any]) -> str:
    parts = [
        _operation(method, path, operation, document["components"]["responses"])
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if name in operation["tags"]
    ]
    return f'<h2 id="{escape(name)}">{escape(name)}</h2>{"".join(parts)}'


def _operation(method: str, path: str, operation: dict[str, Any], refusals: dict[str, Any]) -> str:
    takes = [
        (f"{one['name']} <small>({one['in']})</small>", _kind(one["schema"]), one["description"])
        for one in operation.get("parameters", ())
    ]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        takes.append((f"body <small>({escape(kind)})</small>", _kind(content["schema"]), ""))
        takes += _fields(content["schema"]) if "$ref" not in content["schema"] else []
    answers = []
    for status, answer in operation["responses"].items():
        answer = refusals[status] if "$ref" in answer else answer
        kinds = ", ".join(_kind(one["schema"], kind) for kind, one in answer["content"].items())
        answers.append((status, kinds, answer["description"]))
    asked = f"<table>{_rows(takes)}</table>" if takes else ""
    return (
        f'<article id="{operation["operationId"]}"><h3><code><span class="m">{method.upper()}</span>'
        f"{escape(path)}</code></h3><p>{_text(operation['summary'])}. {_text(operation['description'])}</p>"
        f"{asked}<details><summary>Answers</summary><table>{_rows(answers)}</table></details></article>"
    )


def _shape(name: str, schema: dict[str, Any]) -> str:
    rows = _fields(schema)
    return (
        f'<article id="shape-{escape(name)}"><h3><code>{escape(name)}</code></h3>'
        f"<p>{_text(schema.get('description', ''))}</p><table>{_rows(rows)}</table></article>"
    )


def _fields(schema: dict[str, Any]) -> list[tuple[str, str, str]]:
    needed = schema.get("required", ())
    return [
        (
            escape(name) + (" <small>required</small>" if name in needed else ""),
            _kind(field),
            field.get("description", ""),
        )
        for name, field in schema.get("properties", {}).items()
    ]


def _kind(schema: dict[str, Any], otherwise: str = "any") -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#shape-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(_json(one))}</code>" for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return escape(str(schema.get("format", schema.get("type", otherwise))))


def _json(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _rows(rows: list[tuple[str, str, str]]) -> str:
    return "".join(
        f"<tr><th>{name}</th><td>{kind}</td><td>{_text(told)}</td></tr>" for name, kind, told in rows
    )


def _text(text: str) -> str:
    """Escaped, with `code` between backticks."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if at % 2 else piece for at, piece in enumerate(pieces))
