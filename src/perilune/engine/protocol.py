"""Messages between the engine process and its client: msgspec frames over a local socket.

A frame is a 4-byte little-endian length and a MessagePack array of messages: what one engine step has
to say to all its calls travels together. The engine deals in token ids only; text, roles and templates
do not exist here. This file imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

import msgspec


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """What the grammar needs to know about tokens; sent once by the client."""

    tokens: tuple[bytes, ...]
    """Bytes of each id; for special ids the bytes of their name."""
    special_ids: tuple[int, ...]
    eos_id: int


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    checkpoint: str
    """Folder in the official layout."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    block_size: int = 0
    """Tokens in one cache block; 0 lets the engine choose by the width of a latent."""
    cache_tokens: int = 131072
    """Latent cache size, in tokens over all sequences."""
    max_batch_tokens: int = 2048
    """Most tokens computed in one engine step (chunked prefill)."""
    max_sequences: int = 64
    """Most sequences running at once; more wait."""
    max_context: int | None = None
    """Lower the checkpoint's context length."""
    threads: int | None = None
    experts: Literal["auto", "memory", "files"] = "auto"
    """Routed experts unpacked in memory, in the checkpoint's files, or there only if memory is too small."""
    deterministic: bool = False
    """Fixed tiles: what else is computed changes no bit of a call's logits. Slower; float32 only."""


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    options: EngineOptions
    vocabulary: Vocabulary


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """An image, or some frames of a video, in the place of prompt tokens."""

    start: int
    """Its first token in the prompt; as many follow as the model makes of the grid."""
    key: bytes
    """Equal keys mean equal grids and patches: what was seen and computed is found again by it."""
    grid: tuple[int, int, int]
    """Frames, rows and columns of patches."""
    patches: bytes
    """[frames x rows x columns, 3, p, p] uint8, not normalised."""


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    id: int
    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    """Generation ends when one is sampled; the stop id itself is part of the output."""
    banned_ids: tuple[int, ...] = ()
    """Never sampled (role and media markers)."""
    grammar: str | None = None
    """Lark grammar in llguidance's dialect over token ids and text."""
    grammar_after_id: int | None = None
    """Start the grammar only after this id was generated (`</think>`)."""
    grammar_only_ids: tuple[int, ...] = ()
    """Not sampled before the grammar has started (call markers): what they begin would escape it."""
    cache_salt: str = ""
    media: tuple[Seen, ...] = ()
    """In the order of their places."""


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    id: int


class Check(msgspec.Struct, frozen=True, tag="check"):
    """Ask for the bookkeeping self-check and the counters."""


Command = Start | Generate | Abort | Check


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    vocab_size: int
    max_context: int
    """Most tokens of one call, prompt and output together."""
    block_size: int
    checkpoint_hash: str
    notes: tuple[str, ...] = ()
    """What was chosen at start and why (kernels, dtype, threads), for people."""


class Chunk(msgspec.Struct, frozen=True, kw_only=True, tag="chunk"):
    id: int
    token_ids: tuple[int, ...]
    finish: Literal["stop", "length", "aborted"] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose latents came from the cache; set on the first chunk of a call."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    id: int | None
    """None: the engine itself failed and is about to exit."""
    code: str
    """`code` of the error class in errors.py."""
    message: str
    field: str | None = None
    mend: str | None = None


class Stats(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    running: int
    waiting: int
    blocks_total: int
    blocks_free: int
    blocks_cached: int
    blocks_used: int
    tokens_prefilled: int
    """Prompt tokens computed, those of resumed sequences included."""
    tokens_from_cache: int
    """Prompt tokens of calls that were not computed: the sum of cached_tokens."""
    tokens_generated: int
    preemptions: int


Reply = Ready | Chunk | Failed | Stats


HEADER_BYTES = 4
MAX_FRAME_BYTES = 256 * 1024 * 1024
"""A longer frame means that the two ends lost step; the real vocabulary takes about 2 MB."""

Message = TypeVar("Message")
_encoder = msgspec.msgpack.Encoder()


def encode_frame(messages: Sequence[Command] | Sequence[Reply]) -> bytes:
    body = _encoder.encode(messages)
    return len(body).to_bytes(HEADER_BYTES, "little") + body


class FrameReader(Generic[Message]):
    """Bytes in whatever pieces they arrive, messages out."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[list[Message]]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes. Raises msgspec.DecodeError for what is no frame."""
        self._buffer += data
        messages: list[Message] = []
        start = 0
        while len(self._buffer) - start >= HEADER_BYTES:
            body = start + HEADER_BYTES
            size = int.from_bytes(self._buffer[start:body], "little")
            if size > MAX_FRAME_BYTES:
                raise msgspec.DecodeError(f"a frame of {size} bytes")
            if len(self._buffer) < body + size:
                break
            messages += self._decoder.decode(memoryview(self._buffer)[body : body + size])
            start = body + size
        del self._buffer[:start]
        return messages


def command_reader() -> FrameReader[Command]:
    return FrameReader(msgspec.msgpack.Decoder(list[Command]))


def reply_reader() -> FrameReader[Reply]:
    return FrameReader(msgspec.msgpack.Decoder(list[Reply]))
