"""Messages between the engine process and its client: msgspec frames over a local socket.

A frame is a 4-byte little-endian length and a MessagePack body. The engine deals in token ids only;
text, roles and templates do not exist here. This file imports no torch.
"""

from __future__ import annotations

from typing import Literal

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
    block_size: int = 16
    """Tokens in one cache block."""
    cache_tokens: int = 131072
    """Latent cache size, in tokens over all sequences."""
    max_batch_tokens: int = 2048
    """Most tokens computed in one engine step (chunked prefill)."""
    max_sequences: int = 64
    """Most sequences running at once; more wait."""
    max_context: int | None = None
    """Lower the checkpoint's context length."""
    threads: int | None = None


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    options: EngineOptions
    vocabulary: Vocabulary


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
    cache_salt: str = ""


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    id: int


class Check(msgspec.Struct, frozen=True, tag="check"):
    """Ask for the bookkeeping self-check and the counters."""


Command = Start | Generate | Abort | Check


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    vocab_size: int
    max_context: int
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


class Stats(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    running: int
    waiting: int
    blocks_total: int
    blocks_free: int
    blocks_cached: int
    blocks_used: int
    tokens_prefilled: int
    tokens_from_cache: int
    tokens_generated: int
    preemptions: int


Reply = Ready | Chunk | Failed | Stats
