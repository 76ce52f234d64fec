"""What each route of the public door takes and answers, by method and path. A test compares it with the
table of routes, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from perilune.api.file_kinds import Purpose
from perilune.api.file_store import MAX_FILES
from perilune.api.reference import answers
from perilune.api.sampling import HEADER
from perilune.chat.wire_fields import CallBody

JSON = "application/json"
EVENTS = "text/event-stream"
Schema = dict[str, Any]
BINARY: Schema = {"type": "string", "format": "binary"}
TEXT: Schema = {"type": "string"}


@dataclass(frozen=True)
class Parameter:
    name: str
    place: Literal["path", "query"]
    told: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Operation:
    """One route. `takes` and `gives` map content types to a type of ours or to a ready schema."""

    name: str
    group: str
    told: str
    gives: Mapping[str, Any]
    more: str = ""
    parameters: tuple[Parameter, ...] = ()
    takes: Mapping[str, Any] | None = None
    refusals: tuple[int, ...] = ()
    """Statuses besides those that its key and its body bring with them."""
    other: Mapping[int, Any] | None = None
    """Further answers in JSON that are no errors."""
    within: tuple[Any, ...] = ()
    """Types that its ready schemas refer to."""
    headers: Mapping[str, Any] = field(default_factory=dict)
    """Of a good answer, besides its id."""


CHUNK = "#/components/schemas/ChatChunk"
ERROR = "#/components/schemas/ErrorAnswer"
EVENT: Schema = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": {
            "type": "string",
            "description": "A chat.completion.chunk, an error, or `[DONE]`.",
            "anyOf": [
                {"const": "[DONE]"},
                {
                    "contentMediaType": JSON,
                    "contentSchema": {"anyOf": [{"$ref": CHUNK}, {"$ref": ERROR}]},
                },
            ],
        }
    },
}
"""One event of a stream: OpenAPI before 3.2 has no other way to say it."""
FORM: Schema = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": BINARY,
        "purpose": {"type": "string", "enum": list(get_args(Purpose))},
    },
}
FILE_ID = Parameter("id", "path", "A file's id, such as `file-0642...`.", {"type": "string", "minLength": 1})
MODEL_ID = Parameter(
    "id", "path", "A model's id or alias. It may hold slashes.", {"type": "string", "minLength": 1}
)
PAGE = (
    Parameter("purpose", "query", "Only files of this purpose.", TEXT),
    Parameter(
        "order", "query", "By time; newest first by default.", {"type": "string", "enum": ["asc", "desc"]}
    ),
    Parameter("after", "query", "The id of the file before the first one wanted.", TEXT),
    Parameter(
        "limit",
        "query",
        "The most files to list.",
        {"type": "integer", "minimum": 1, "maximum": 999_999, "default": MAX_FILES},
    ),
)
STREAM = (
    'With `"stream": true` the answer is server-sent events, each `data:` a chat.completion.chunk, the last '
    "`data: [DONE]`. An error after the first event is an event `{error: ...}` without `[DONE]` after it."
)
ADJUSTED = {
    HEADER.decode(): {
        "description": "What was answered with instead of what was asked for: `temperature=1.0, n=1`.",
        "schema": TEXT,
    }
}
MODEL_FAILS = (404, 502, 503, 507)

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): Operation(
        "createChatCompletion", "Chat", "Ask a model",
        {JSON: answers.ChatCompletion, EVENTS: EVENT}, STREAM, takes={JSON: CallBody}, refusals=MODEL_FAILS,
        within=(answers.ChatChunk,), headers=ADJUSTED,
    ),
    ("GET", "/v1/models"): Operation(
        "listModels", "Models", "The models that are served", {JSON: answers.Models}, refusals=(502, 503),
    ),
    ("GET", "/v1/models/{id:path}"): Operation(
        "retrieveModel", "Models", "One model", {JSON: answers.Model}, parameters=(MODEL_ID,),
        refusals=(404, 502, 503),
    ),
    ("POST", "/v1/tokenizers/estimate-token-count"): Operation(
        "estimateTokenCount", "Chat", "How long a prompt would be", {JSON: answers.TokenEstimate},
        "Takes the body of a chat call. Free.", takes={JSON: CallBody}, refusals=MODEL_FAILS,
        headers=ADJUSTED,
    ),
    ("GET", "/v1/users/me/balance"): Operation(
        "retrieveBalance", "Account", "What the key's organisation has left", {JSON: answers.BalanceAnswer},
    ),
    ("POST", "/v1/files"): Operation(
        "uploadFile", "Files", "Upload a file", {JSON: answers.File}, takes={"multipart/form-data": FORM},
        refusals=(507,),
    ),
    ("GET", "/v1/files"): Operation(
        "listFiles", "Files", "The project's files", {JSON: answers.Files}, parameters=PAGE, refusals=(400,),
    ),
    ("GET", "/v1/files/{id}"): Operation(
        "retrieveFile", "Files", "One file", {JSON: answers.File}, parameters=(FILE_ID,), refusals=(404,),
    ),
    ("GET", "/v1/files/{id}/content"): Operation(
        "retrieveFileContent", "Files", "What a file holds",
        {"text/plain": TEXT, "image/*": BINARY, "video/*": BINARY},
        "The text of a document; the bytes of an image or a video.", parameters=(FILE_ID,), refusals=(404,),
    ),
    ("DELETE", "/v1/files/{id}"): Operation(
        "deleteFile", "Files", "Delete a file", {JSON: answers.DeletedFile}, parameters=(FILE_ID,),
        refusals=(404,),
    ),
    ("GET", "/healthz"): Operation("health", "Server", "The process lives", {JSON: answers.Alive}),
    ("GET", "/readyz"): Operation(
        "ready", "Server", "The model behind it answers", {JSON: answers.Readiness},
        other={503: answers.Readiness},
    ),
    ("GET", "/metrics"): Operation("metrics", "Server", "Prometheus text", {"text/plain": TEXT}),
    ("GET", "/openapi.json"): Operation("openapi", "Server", "This document", {JSON: {"type": "object"}}),
    ("GET", "/docs"): Operation("reference", "Server", "This document to read", {"text/html": TEXT}),
}  # fmt: skip
