"""Which endpoint a conversation belongs to: the same each time, so that it finds its prefix cached."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec

from perilune.chat.messages import Request


class Named(Protocol):
    @property
    def name(self) -> str: ...


One = TypeVar("One", bound=Named)


def in_order(request: Request, replicas: Sequence[One]) -> list[One]:
    """The endpoints, the conversation's own first. Never depends on which are up."""
    start = conversation(request)
    return sorted(replicas, key=lambda one: hashlib.blake2b(start + one.name.encode()).digest())


def conversation(request: Request) -> bytes:
    """A digest of what stays the same while a conversation grows: its cache key where it has one, else the
    tools and the messages up to the first of the user."""
    if request.prompt_cache_key:
        return _digest([request.cache_salt, request.prompt_cache_key])
    roles = [message.role for message in request.messages]
    end = roles.index("user") + 1 if "user" in roles else 1
    return _digest([request.cache_salt, request.tools, request.messages[:end]])


def _digest(value: object) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(value), digest_size=16).digest()
