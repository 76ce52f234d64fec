"""Makes the OpenAPI 3.1 document of a table of routes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, get_type_hints

import msgspec

from perilune import __version__
from perilune.accounts.desk.act import Acts
from perilune.api.doors import Door
from perilune.api.reference.answers import ErrorAnswer
from perilune.api.reference.notes import CHAT
from perilune.api.reference.operations import JSON, OPERATIONS, Operation
from perilune.chat.wire_fields import CallBody

OPENAPI = "3.1.0"
SCHEMAS = "#/components/schemas/{name}"
ALWAYS = (400, 421, 431, 500, 503)
"""What cannot be read as HTTP, our own defects, and a server that is full or stops."""
FOR_KEYS = (401, 403, 429)
FOR_BODIES = (400, 408, 413, 415)
REASONS: Mapping[int, str] = {
    400: "The request is wrong; the message names the field and the mend.",
    401: "No key, or not one of ours.",
    403: "The key lacks the scope, or no backend may serve it.",
    404: "No such model, file or route.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    415: "The body is of a type, or in an encoding, that is not read here.",
    429: "A rate limit, a budget, the balance, or the endpoint's limit; too many wrong keys.",
    421: "The API does not answer under that Host (setting `allowed_hosts`).",
    431: "The headers are too large.",
    500: "A defect of ours; the server's log says what.",
    502: "The model's endpoint failed.",
    503: "The model cannot be reached, or the server is full or stops. Try again.",
    507: "No space is left on the server's disk.",
}
LIMIT_HEADERS = {
    f"x-ratelimit-{name}": {
        "description": f"Where requests a minute are limited: {told}",
        "schema": {"type": "integer"},
    }
    for name, told in (
        ("limit", "how many there may be."),
        ("remaining", "how many more there may be now."),
        ("reset", "when all are free again, if no more are made. Unix time."),
    )
}
ID_HEADER = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}
TOLD = (
    "Every answer has an id in `x-request-id`. Methods that are not listed answer 405, routes that are not "
    "listed 404. Fields of a chat body that are not listed are accepted and ignored."
)

ADMIN_TOLD = "Amounts are nano-USD. Every route needs a key with the scope admin."


def public_document(doors: Iterable[Door]) -> dict[str, Any]:
    told = [(door, OPERATIONS[key]) for door in doors if (key := (door.method, door.path)) in OPERATIONS]
    return _document("Perilune", TOLD, told)


def admin_document(doors: Iterable[Door], acts: Acts) -> dict[str, Any]:
    told = [(door, _admin_operation(door, acts)) for door in doors]
    return _document("Perilune: the admin door", ADMIN_TOLD, told)


def _admin_operation(door: Door, acts: Acts) -> Operation:
    """Acts tell of themselves: their fields and what they return."""
    name = door.path.removeprefix("/admin/")
    words = "".join(piece.title() for piece in door.path.replace("/", " ").replace(".", " ").split())
    if name not in acts:
        known = OPERATIONS.get((door.method, door.path))
        return known or Operation(f"get{words}", "Server", name, {JSON: {}}, refusals=(502,))
    act = acts[name]
    group = name.partition("/")[0].title()
    told = (act.run.__doc__ or name.replace("/", ": ")).splitlines()[0]
    gives = {JSON: get_type_hints(act.run)["return"]}
    if door.method == "GET":
        return Operation(f"get{words}", group, told, gives, "With its fields left at what they are.")
    return Operation(f"act{words}", group, told, gives, takes={JSON: act.fields}, refusals=(404, 507))


def _document(title: str, told: str, doors: list[tuple[Door, Operation]]) -> dict[str, Any]:
    types = _Types([*(kind for _, one in doors for kind in _kinds(one)), ErrorAnswer])
    paths: dict[str, dict[str, Any]] = {}
    for door, operation in doors:
        path = door.path.replace(":path}", "}")
        paths.setdefault(path, {})[door.method.lower()] = _operation(door, operation, types)
    return {
        "openapi": OPENAPI,
        "info": {"title": title, "version": __version__, "description": told},
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(one.group for _, one in doors)],
        "paths": paths,
        "components": {
            "schemas": types.components,
            "responses": {str(status): _refusal(status, types) for status in REASONS},
            "headers": {
                "RequestId": {
                    "description": "The request's id; the log and the ledger bear the same one.",
                    "schema": {"type": "string"},
                }
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "bearerFormat": "plk_..."}},
        },
    }


def _operation(door: Door, operation: Operation, types: _Types) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.group],
        "summary": operation.told,
        "description": " ".join(filter(None, (operation.more, _scope(door)))),
        "security": [] if door.needs == "nothing" else [{"key": []}],
        "responses": _responses(door, operation, types),
    }
    if operation.parameters:
        found["parameters"] = [
            {
                "name": one.name,
                "in": one.place,
                "required": one.place == "path",
                "description": one.told,
                "schema": dict(one.schema),
            }
            for one in operation.parameters
        ]
    if operation.takes:
        content = _content(operation.takes, types)
        needed = any(types.required(one["schema"]) for one in content.values())
        found["requestBody"] = {"required": needed, "content": content}
    return found


def _scope(door: Door) -> str:
    return "Open to all." if door.needs == "nothing" else f"Needs a key with the scope {door.needs}."


def _responses(door: Door, operation: Operation, types: _Types) -> dict[str, Any]:
    statuses = {*ALWAYS, *operation.refusals}
    if door.needs != "nothing":
        statuses |= {*FOR_KEYS}
    if operation.takes:
        statuses |= {*FOR_BODIES}
    found: dict[str, Any] = {
        str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)
    }
    limits = LIMIT_HEADERS if door.needs == "chat" else {}
    answer = {
        "description": "The answer.",
        "headers": ID_HEADER | limits | dict(operation.headers),
        "content": _content(operation.gives, types),
    }
    others = {
        str(status): {
            "description": REASONS[status],
            "headers": ID_HEADER,
            "content": {JSON: {"schema": {"anyOf": [types.schema(kind), types.schema(ErrorAnswer)]}}},
        }
        for status, kind in (operation.other or {}).items()
    }
    return {"200": answer, **found, **others}


def _refusal(status: int, types: _Types) -> dict[str, Any]:
    headers: dict[str, Any] = dict(ID_HEADER)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        headers["retry-after"] = {
            "description": "Seconds to wait, where waiting helps.",
            "schema": {"type": "integer"},
        }
    if status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = {"schema": {"type": "string"}}
    content = {JSON: {"schema": types.schema(ErrorAnswer)}}
    return {"description": REASONS[status], "headers": headers, "content": content}


def _content(kinds: Mapping[str, Any], types: _Types) -> dict[str, Any]:
    return {name: {"schema": types.schema(kind)} for name, kind in kinds.items()}


def _kinds(operation: Operation) -> list[Any]:
    """The types of ours that the operation speaks of; ready schemas need no more."""
    given = (*operation.gives.values(), *(operation.takes or {}).values(), *(operation.other or {}).values())
    return [*(kind for kind in given if not isinstance(kind, dict)), *operation.within]


class _Types:
    """Schemas of types, by msgspec, which also decodes what clients send."""

    def __init__(self, kinds: list[Any]) -> None:
        schemas, components = msgspec.json.schema_components(
            kinds, ref_template=SCHEMAS, schema_hook=_anything
        )
        self._found = list(zip(kinds, schemas, strict=True))
        self.components: dict[str, Any] = dict(components)
        if "CallBody" in components:
            properties = components[CallBody.__name__]["properties"]
            for name, told in CHAT.items():
                properties[name] = {**properties[name], **told}

    def schema(self, kind: Any) -> dict[str, Any]:
        if isinstance(kind, dict):
            return kind
        return next(schema for known, schema in self._found if known == kind)

    def required(self, schema: dict[str, Any]) -> bool:
        """Whether anything in it must be sent."""
        name = schema.get("$ref", "").rpartition("/")[2]
        return bool((self.components[name] if name else schema).get("required"))


def _anything(kind: type) -> dict[str, Any]:
    """What is only said to be some object may be any JSON."""
    if kind is object:
        return {"description": "Any JSON."}
    raise NotImplementedError(kind)
