"""Holds the schemas of a request to the Moonshot flavour, each distinct one once.

`strict` refuses what is not of the flavour, `repair` mends it (docs/api.md lists the mends): the mended
schema is what the prompt shows and what the answer is held to. Tools with `strict: false` are not held to
their schema, which therefore may be any.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import msgspec

from perilune.backends.base import ModelEntry
from perilune.chat.flavoured import MAX_BYTES, flaw_of
from perilune.chat.flavoured_repair import mended
from perilune.chat.messages import Request, Tool
from perilune.errors import InputError

MOST_KEPT = 512
MOST_KEPT_BYTES = 4 * 1024 * 1024
"""Of mended schemas; those that were in order cost next to nothing."""
DOCUMENT = "response_format.json_schema.schema"


class _Judged(msgspec.Struct, frozen=True):
    """What came of one schema. Both None: it is in order."""

    flaw: str | None = None
    mended: dict[str, Any] | None = None
    size: int = 0


class SchemaRules:
    """Remembers what came of the last schemas."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, _Judged] = OrderedDict()
        self._bytes = 0

    def fit(self, request: Request, entry: ModelEntry) -> Request:
        """The request with schemas that the entry's policy takes. Raises InputError under `strict`."""
        strict = entry.schema_policy == "strict"
        if request.tools:
            tools = tuple(self._tool(tool, place, strict) for place, tool in enumerate(request.tools))
            if any(new is not old for new, old in zip(tools, request.tools, strict=True)):
                request = msgspec.structs.replace(request, tools=tools)
        if request.json_schema:
            schema = self._judged(request.json_schema, DOCUMENT, DOCUMENT, strict, holds_fields=False)
            if schema is not request.json_schema:
                request = msgspec.structs.replace(request, json_schema=schema)
        return request

    def _tool(self, tool: Tool, place: int, strict: bool) -> Tool:
        if not tool.strict or not tool.parameters:
            return tool
        field = f"tools[{place}].function.parameters"
        schema = self._judged(tool.parameters, field, "tools.function.parameters", strict, holds_fields=True)
        return tool if schema is tool.parameters else msgspec.structs.replace(tool, parameters=schema)

    def _judged(
        self, schema: Mapping[str, Any], field: str, name: str, strict: bool, *, holds_fields: bool
    ) -> Mapping[str, Any]:
        text = msgspec.json.encode(schema)
        key = hashlib.blake2b(b"%d%d" % (strict, holds_fields) + text, digest_size=16).digest()
        judged = self._known.get(key)
        if judged is None:
            judged = _judge(dict(schema), len(text), strict=strict, holds_fields=holds_fields)
            self._keep(key, judged)
        else:
            self._known.move_to_end(key)
        if judged.flaw is not None:
            raise InputError(
                f"Invalid request: {name} is not a valid moonshot flavored json schema, "
                f"details: <{judged.flaw}>",
                field=field,
                mend="correct it, or have schemas mended by the setting schema_policy",
            )
        return schema if judged.mended is None else judged.mended

    def _keep(self, key: bytes, judged: _Judged) -> None:
        self._known[key] = judged
        self._bytes += judged.size
        while len(self._known) > MOST_KEPT or self._bytes > MOST_KEPT_BYTES:
            _, dropped = self._known.popitem(last=False)
            self._bytes -= dropped.size


def _judge(schema: dict[str, Any], size: int, *, strict: bool, holds_fields: bool) -> _Judged:
    if strict:
        return _Judged(flaw=flaw_of(schema))
    if size > MAX_BYTES:
        return _Judged()
    repaired = mended(schema, holds_fields=holds_fields)
    if repaired is schema:
        return _Judged()
    return _Judged(mended=repaired, size=len(msgspec.json.encode(repaired)))
