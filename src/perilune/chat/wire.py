"""The OpenAI dialect of chat, in one place for the server side and the client side.

Server: `decode_request`, then `ChunkEncoder` (streaming) or `encode_completion`, or `encode_error`.
Client: `encode_request`, then `ChunkDecoder` (streaming) or `decode_completion`, or `decode_error`.
The fields that are Kimi's own (`thinking`, `reasoning_content`, `partial`, `cached_tokens`) are spoken too.
"""

from perilune.chat.wire_answer import (
    DONE,
    ChunkEncoder,
    encode_completion,
    encode_error,
    encode_error_event,
)
from perilune.chat.wire_errors import decode_error
from perilune.chat.wire_messages import FILE_REFERENCE
from perilune.chat.wire_request import NEUTRAL, ChatCall, decode_request
from perilune.chat.wire_stream import ChunkDecoder, completion_events, decode_completion
from perilune.chat.wire_upstream import encode_request

__all__ = [
    "DONE",
    "FILE_REFERENCE",
    "NEUTRAL",
    "ChatCall",
    "ChunkDecoder",
    "ChunkEncoder",
    "completion_events",
    "decode_completion",
    "decode_error",
    "decode_request",
    "encode_completion",
    "encode_error",
    "encode_error_event",
    "encode_request",
]
