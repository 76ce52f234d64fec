"""The shapes of answers, for the OpenAPI document. The code that makes answers is elsewhere; a schemathesis
run holds the two together."""

from __future__ import annotations

from typing import Literal

import msgspec

from perilune.api.file_kinds import Purpose
from perilune.chat.messages import FinishReason


class Answer(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Says all that an answer holds: a field that is not told of is a fault that the tests find."""


class ErrorDetail(Answer):
    """What is wrong, in one line that names the field and the mend."""

    message: str
    type: str


class ErrorAnswer(Answer):
    error: ErrorDetail


class PromptTokensDetails(Answer):
    cached_tokens: int


class CompletionTokensDetails(Answer):
    reasoning_tokens: int


class Usage(Answer):
    """`cached_tokens` is the backend's own number, and stands in both places that clients read."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class AnsweredFunction(Answer):
    name: str
    arguments: str


class AnsweredCall(Answer):
    id: str
    type: str
    function: AnsweredFunction


class AnswerMessage(Answer):
    role: Literal["assistant"]
    content: str
    reasoning_content: str = ""
    tool_calls: list[AnsweredCall] = []


class Choice(Answer):
    index: int
    message: AnswerMessage
    finish_reason: FinishReason


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class FunctionDelta(Answer):
    arguments: str
    name: str = ""


class CallDelta(Answer):
    index: int
    function: FunctionDelta
    id: str = ""
    type: str = "function"


class Delta(Answer):
    """A piece of the answer."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[CallDelta] = []


class ChunkChoice(Answer):
    index: int
    delta: Delta
    finish_reason: FinishReason | None
    usage: Usage | None = None


class ChatChunk(Answer):
    """One event of a stream. The stream ends with `data: [DONE]`; without it the answer is not whole."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class PeriluneModel(Answer):
    """For another Perilune that uses this one as its endpoint."""

    goals: str
    orchestrator_profile: str
    subagent_profile: str
    max_output_tokens: int
    sampling_policy: Literal["strict", "clamp", "open"]
    accepted: dict[str, float]
    """The sampling values of each mode that a strict policy takes, by name."""


class Model(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int
    supports_image_in: bool
    supports_video_in: bool
    supports_reasoning: bool
    perilune: PeriluneModel


class Models(Answer):
    object: Literal["list"]
    data: list[Model]


class TokenTotal(Answer):
    total_tokens: int


class TokenEstimate(Answer):
    data: TokenTotal


class BalanceParts(Answer):
    """USD, rounded down to five decimals."""

    available_balance: float
    voucher_balance: float
    cash_balance: float


class BalanceAnswer(Answer):
    code: int
    data: BalanceParts
    scode: str
    status: bool


class File(Answer):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    status: Literal["ready"]
    status_details: str | None


class Files(Answer):
    object: Literal["list"]
    data: list[File]
    has_more: bool


class DeletedFile(Answer):
    id: str
    object: Literal["file"]
    deleted: bool


class Alive(Answer):
    status: Literal["ok"]


class Readiness(Answer):
    status: Literal["ready", "not ready"]
    reason: str = ""
    """Which kind of failure; no more, as this route is open to all."""
