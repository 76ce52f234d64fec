"""How endpoints' dialects differ, as data: what a kind of engine is known for, and what a refusal teaches.

What we send differs. What comes back (`reasoning_content` or `reasoning`, usage in the last chunk or in its
own, cached tokens flat or nested, tool calls without ids) is read in every form by `chat/wire`; only calls
that were left in the text must be known of beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from perilune.chat.messages import Request
from perilune.chat.wire import encode_request
from perilune.errors import BackendRefused

OPTIONAL_FIELDS = (
    "chat_template_kwargs",
    "thinking",
    "stream_options",
    "prompt_cache_key",
    "seed",
    "parallel_tool_calls",
)
"""Left out when an endpoint refuses a call with their name: none changes what an answer may be billed."""
SAMPLING_FIELDS = frozenset({"temperature", "top_p"})


@dataclass(frozen=True)
class Quirks:
    """One endpoint's dialect. Learnt from its refusals, or given."""

    omit: frozenset[str] = frozenset()
    """Fields it refuses or does not know."""
    token_limit: str = "max_tokens"
    """Its name for the limit of the answer; newer ones call it `max_completion_tokens`."""
    reasoning: str = "reasoning_content"
    """The field in which it takes an earlier answer's thinking."""
    without_thinking: tuple[tuple[str, str], ...] = ()
    """Fields that switch thinking off there, besides those that are not omitted."""
    calls_in_text: bool = False
    """It does not read the model's tool calls: they stay in the text as the model spells them."""
    schema_beside_type: bool = False
    """It takes an answer's schema as `{"type": "json_object", "schema": ...}`."""
    one_at_a_time: bool = False
    """It breaks off an answer when another request comes, were it for the list of its models."""

    def body(self, request: Request, model: str) -> dict[str, Any]:
        body = encode_request(request, model=model, stream=True)
        if self.token_limit != "max_tokens" and "max_tokens" in body:
            body[self.token_limit] = body.pop("max_tokens")
        if not request.thinking:
            body |= dict(self.without_thinking)
        if self.schema_beside_type and request.json_schema:
            body["response_format"] = {"type": "json_object", "schema": request.json_schema}
        if self.reasoning != "reasoning_content":
            for message in body["messages"]:
                if "reasoning_content" in message:
                    message[self.reasoning] = message.pop("reasoning_content")
        for name in self.omit:
            body.pop(name, None)
        return body

    def learn(self, refusal: BackendRefused, body: dict[str, Any]) -> Quirks | None:
        """The quirks under which the refused call may pass; None when the refusal is about something else."""
        named = set(re.findall(r"\w+", refusal.message))
        if self.token_limit == "max_tokens" and "max_tokens" in body and "max_completion_tokens" in named:
            return replace(self, token_limit="max_completion_tokens")
        refused = {field for field in OPTIONAL_FIELDS if field in body and field in named}
        return self.without(refused) if refused else None

    def without(self, fields: Set[str]) -> Quirks:
        """The same where those fields are not sent either."""
        return replace(self, omit=self.omit | fields)


OPEN_SOURCE = frozenset({"thinking", "prompt_cache_key"})
"""Of the hosted API, unknown to the servers that people run themselves: they read `chat_template_kwargs`."""

ENGINES: Mapping[str, Quirks] = {
    "": Quirks(),
    "hosted": Quirks(omit=frozenset({"chat_template_kwargs"})),
    "vllm": Quirks(omit=OPEN_SOURCE),
    "sglang": Quirks(omit=OPEN_SOURCE),
    "ktransformers": Quirks(omit=OPEN_SOURCE | {"parallel_tool_calls"}),
    "ollama": Quirks(
        omit=OPEN_SOURCE | {"chat_template_kwargs", "parallel_tool_calls"},
        reasoning="reasoning",
        without_thinking=(("reasoning_effort", "none"),),
    ),
    "llama-cpp": Quirks(
        omit=OPEN_SOURCE | {"chat_template_kwargs", "parallel_tool_calls"},
        calls_in_text=True,
        schema_beside_type=True,
        one_at_a_time=True,
    ),
}
"""`engine` of a `[[backends]]` table -> its dialect; "" sends all spellings and learns from refusals."""
