"""What the types of a chat body do not say: what its fields are for, and bounds that are checked later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perilune.chat.wire_messages import MAX_MESSAGES
from perilune.chat.wire_request import MAX_STOPS
from perilune.chat.wire_tools import MAX_TOOLS

CHAT: Mapping[str, Mapping[str, Any]] = {
    "model": {"description": "A model's id or alias.", "minLength": 1},
    "messages": {"description": "The conversation so far, at least one message.", "minItems": 1,
                 "maxItems": MAX_MESSAGES},
    "max_tokens": {"description": "The older name of max_completion_tokens, which counts if both are sent.",
                   "minimum": 1, "maximum": 2**31 - 1},
    "max_completion_tokens": {"description": "The most tokens of the answer, thinking included.",
                              "minimum": 1, "maximum": 2**31 - 1},
    "thinking": {"description": "Whether the model thinks first (it does unless told otherwise), and whether "
                                "the thinking of earlier turns stays in the prompt."},
    "chat_template_kwargs": {"description": "How open-source servers spell the same switches."},
    "reasoning_effort": {"description": "`none` turns thinking off; other values change nothing."},
    "temperature": {"description": "By the model's sampling policy: refused, replaced or honoured.",
                    "minimum": 0, "maximum": 2},
    "top_p": {"description": "As temperature.", "exclusiveMinimum": 0, "maximum": 1},
    "n": {"description": "Only 1 is served; others by the sampling policy.", "minimum": 1},
    "presence_penalty": {"description": "Only 0 is served; others by the sampling policy."},
    "frequency_penalty": {"description": "Only 0 is served; others by the sampling policy."},
    "seed": {"description": "The same seed and request give the same answer, where the backend can.",
             "minimum": -(2**63), "maximum": 2**63 - 1},
    "stop": {"description": f"A text or up to {MAX_STOPS}, each at most 32 bytes, that end the answer.",
             "minLength": 1, "maxItems": MAX_STOPS},
    "response_format": {"description": "`json_schema` holds the answer to a schema."},
    "tools": {"description": "Functions that the model may call; the builtin function `$web_search` is the "
                             "server's own.", "maxItems": MAX_TOOLS},
    "tool_choice": {"description": "`auto`, `none`; with thinking off also `required` or one function."},
    "parallel_tool_calls": {"description": "false holds an answer to one call."},
    "logprobs": {"description": "Not served; asked for, it is refused or left out by the sampling policy."},
    "top_logprobs": {"description": "As logprobs."},
    "functions": {"description": "Superseded by tools.", "enum": [None]},
    "function_call": {"description": "Superseded by tool_choice.", "enum": [None]},
    "stream": {"description": "Answer as server-sent events."},
    "stream_options": {"description": "`include_usage` adds a last chunk with the usage."},
    "prompt_cache_key": {"description": "A hint for routing; never changes the answer."},
}  # fmt: skip
"""Field of CallBody -> keywords of JSON Schema beside its type."""
