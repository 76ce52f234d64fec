"""Agent profiles: which tools an agent has and how its conversation is kept, as data.

A profile is one JSON file beside this module (`profiles/NAME.json`). Nothing in the loop branches on a
profile's name. `rename` and `orchestrate-rename` are frozen: the bundled model is trained on them and
its model card carries their `profile_hash`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from perilune.chat.messages import Tool
from perilune.errors import ConfigError

BindKind = Literal["words", "prompt", "spans", "listed", "agents"]

FOLDER = Path(__file__).parent / "profiles"


class ContextPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of the conversation the next request carries."""

    policy: Literal["append", "rolling"] = "append"
    """`append` sends everything; `rolling` the goal, the sub-agents created, and the last `rounds`."""
    rounds: int = 1
    round_starts: tuple[str, ...] = ()
    """Tools whose call begins a new round."""
    max_tokens: int = 200_000
    """Restart with a fresh context rather than send a longer prompt."""
    restart_after_edits: int | None = None
    restart_note: str = ""
    """Said to the agent at the start of a fresh context; empty says nothing."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ceilings of what one tool call may take or return."""

    command_seconds: float = 120.0
    output_characters: int = 30_000
    file_bytes: int = 1_000_000
    memory_mb: int = 4_096
    processes: int = 256
    grep_hits: int = 100


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    version: int = 1
    system_prompt: str = ""
    """Put before the agent's own instructions; empty means the instructions stand alone."""
    tools: tuple[Tool, ...]
    bind: Mapping[str, Mapping[str, BindKind]] = msgspec.field(default_factory=dict)
    """tool -> string argument -> where its value must be copied from (`agent/binding.py`)."""
    context: ContextPolicy = msgspec.field(default_factory=ContextPolicy)
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    limits: Limits = msgspec.field(default_factory=Limits)
    thinking: bool = True
    max_parallel_calls: int = 1
    max_steps: int = 100
    page_size: int = 50
    on_rejection: Literal["fresh", "note"] = "fresh"
    """What happens to work that was not accepted: a fresh agent tries again, or this one is told why. Only
    for models that can read such a note."""
    finish_tool: str | None = None
    """Calling it ends the agent; its `summary` argument is the final message."""

    def tool(self, name: str) -> Tool | None:
        return next((tool for tool in self.tools if tool.name == name), None)

    def fitted(self, context_length: int, max_output: int) -> Profile:
        """This profile with its limits within those of a model: so many tokens of prompt and answer, so many
        of an answer."""
        most = min(context_length // 4, max_output)
        answer = min(self.sampling.max_tokens or most, most)
        context = msgspec.structs.replace(
            self.context, max_tokens=min(self.context.max_tokens, context_length - 2 * answer)
        )
        if self.sampling.max_tokens is None:
            return msgspec.structs.replace(self, context=context)
        sampling = msgspec.structs.replace(self.sampling, max_tokens=answer)
        return msgspec.structs.replace(self, context=context, sampling=sampling)


def load_profile(name: str, folder: Path = FOLDER) -> Profile:
    """The profile NAME of `folder`, checked.

    Raises ConfigError naming the file and what is wrong in it."""
    path = folder / f"{name}.json"
    try:
        profile = msgspec.json.decode(_read(name, folder), type=Profile)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path.name} is not a valid profile: {error}", field="profile") from None
    _check(profile, name)
    return profile


def profile_hash(name: str, folder: Path = FOLDER) -> str:
    """SHA-256 (hex) of the profile's JSON without insignificant white space.

    Key order is kept, not sorted: the order of a tool's properties is the order in which a model writes
    its arguments, so two profiles that differ in it are two different trainings."""
    try:
        data = json.loads(_read(name, folder))
    except ValueError as error:
        raise ConfigError(f"{name}.json is not JSON: {error}", field="profile") from None
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def profile_names(folder: Path = FOLDER) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.json")))


def parse_profile(data: bytes | str) -> Profile:
    """A profile from JSON that is not one of ours, under the same checks. Raises ConfigError."""
    try:
        profile = msgspec.json.decode(data, type=Profile)
    except msgspec.DecodeError as error:
        raise ConfigError(f"not a valid profile: {error}", field="profile") from None
    _check(profile, profile.name)
    return profile


def _read(name: str, folder: Path) -> bytes:
    if name not in profile_names(folder):
        known = ", ".join(profile_names(folder))
        raise ConfigError(f"no profile named {name!r}", field="profile", mend=f"one of: {known}")
    return (folder / f"{name}.json").read_bytes()


@cache
def bundled_profile(name: str) -> Profile:
    """`load_profile(name)`, read once a process: the bundled files do not change under it."""
    return load_profile(name)


def _check(profile: Profile, name: str) -> None:
    def refuse(message: str) -> ConfigError:
        return ConfigError(f"{name}: {message}", field="profile")

    if profile.name != name:
        raise refuse(f"the file names itself {profile.name!r}")
    names = [tool.name for tool in profile.tools]
    if not names or len(set(names)) != len(names):
        raise refuse("needs at least one tool, each name once")
    for tool in profile.tools:
        if tool.parameters.get("type") != "object":
            raise refuse(f"tool {tool.name}: parameters must be a JSON schema of type object")
    for tool_name, arguments in profile.bind.items():
        bound = profile.tool(tool_name)
        if bound is None:
            raise refuse(f"bind names the tool {tool_name!r}, which it does not have")
        for argument in arguments:
            if bound.parameters.get("properties", {}).get(argument, {}).get("type") != "string":
                raise refuse(f"bind of {tool_name}.{argument}: no such string argument")
    starts = profile.context.round_starts
    if profile.context.policy == "rolling" and not starts:
        raise refuse("a rolling context needs round_starts")
    for wanted in (*starts, *((profile.finish_tool,) if profile.finish_tool else ())):
        if wanted not in names:
            raise refuse(f"names the tool {wanted!r}, which it does not have")
    _check_numbers(profile, refuse_prefix=name)


def _check_numbers(profile: Profile, refuse_prefix: str) -> None:
    context, sampling, limits = profile.context, profile.sampling, profile.limits
    at_least_one = {
        "max_parallel_calls": profile.max_parallel_calls,
        "max_steps": profile.max_steps,
        "page_size": profile.page_size,
        "context.rounds": context.rounds,
        "context.max_tokens": context.max_tokens,
        "context.restart_after_edits": context.restart_after_edits or 1,
        "sampling.max_tokens": 1 if sampling.max_tokens is None else sampling.max_tokens,
        "limits.command_seconds": limits.command_seconds,
        "limits.output_characters": limits.output_characters,
        "limits.file_bytes": limits.file_bytes,
        "limits.memory_mb": limits.memory_mb,
        "limits.processes": limits.processes,
        "limits.grep_hits": limits.grep_hits,
    }
    for field, value in at_least_one.items():
        if value < 1:
            raise ConfigError(f"{refuse_prefix}: {field} must be at least 1, not {value}", field="profile")
