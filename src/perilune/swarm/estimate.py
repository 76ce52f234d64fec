"""What a session will come to, told before anything is spent. An estimate, and it says so.

For a rename it follows from the files and lines that hold the name, since the tools leave a sub-agent one
way to work. For other goals nobody can know: it is agents times what a sub-agent typically takes. What
limits a session is its budget, never this.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from perilune.agent.profiles import Profile
from perilune.chat.messages import Usage
from perilune.swarm.events import Budget, SessionStarted
from perilune.swarm.verify import RenameScope

BYTES_PER_TOKEN = 4
"""What the figures below are counted in; the sums are scaled to the model's own tokens."""
MESSAGE_TOKENS = 5
"""What the template adds around one message, about."""
HIT_TOKENS = 16
"""One hit line in a tool's answer."""
CALL_TOKENS = 22
"""A tool call as the model writes it, besides the names in it."""
SENTENCE_TOKENS = 12

TYPICAL_STEPS = 13
"""Model calls of a sub-agent with a goal of any kind: 4,000 steps over 300 agents."""
TYPICAL_START = 3_000
"""Tokens of its first prompt: tools, instructions, task."""
TYPICAL_GROWTH = 1_500
"""Tokens that a step adds to its prompt: the call and what the tool said."""
TYPICAL_ANSWER = 300


class Prices(Protocol):
    """What is asked of the price book (`accounts/prices.py`)."""

    def charge(self, price_id: str, usage: Usage) -> int: ...


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """About what a session will take. Amounts in nano-USD at the entry's list price."""

    agents: int
    """Sub-agents in all."""
    live: int
    """How many of them at once."""
    steps: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    nano_usd: int
    price: str
    basis: str
    """What it was computed from, in a few words."""
    limits: tuple[str, ...] = ()
    """Ceilings of the budget that lie below it, each as a sentence."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def text(self) -> str:
        """One or more lines for a person."""
        share = 100 * self.cached_tokens // max(self.prompt_tokens, 1)
        head = (
            f"About {self.agents:,} sub-agents ({self.live:,} at once), {self.steps:,} steps, "
            f"{self.tokens:,} tokens ({share} % of prompts from the cache), "
            f"USD {usd(self.nano_usd)} at {self.price} prices."
        )
        return "\n".join(
            [head, f"An estimate from {self.basis}; the budget is what limits it.", *self.limits]
        )


@dataclass(frozen=True)
class _Calls:
    """Model calls of one agent."""

    steps: int
    prompt: int
    cached: int
    completion: int

    def times(self, count: int) -> _Calls:
        return _Calls(self.steps * count, self.prompt * count, self.cached * count, self.completion * count)


def usd(nano: int) -> str:
    """Nano-USD for people: cents for large amounts, more digits for small ones."""
    digits = 2 if nano >= 1_000_000_000 else 4 if nano >= 1_000_000 or nano == 0 else 6
    return f"{nano / 1_000_000_000:,.{digits}f}"


def estimate(started: SessionStarted, scope: RenameScope | None, prices: Prices) -> Estimate:
    """Of a planned session: `estimate(plan.started, plan.scope, PriceBook.load(settings))`."""
    return _goal(started, prices) if scope is None else _rename(started, scope, prices)


def _rename(started: SessionStarted, scope: RenameScope, prices: Prices) -> Estimate:
    """One sub-agent per file."""
    clause = started.goal.partition(" in ")[0]
    shared = _tokens(_tools(started.subagent)) + _tokens(clause) + MESSAGE_TOKENS
    parts = [_orchestrator(started.goal, scope.files, started.orchestrator)]
    parts += [_renamer(path, scope.hits.get(path, 0), shared, started.subagent) for path in scope.files]
    lines = sum(scope.hits.values())
    basis = f"{len(scope.files):,} files with {lines:,} lines to change, and no retries"
    return _sum_up(started, parts, len(scope.files), basis, prices)


def _goal(started: SessionStarted, prices: Prices) -> Estimate:
    """So many sub-agents, each taking what one typically takes."""
    agents = started.agents
    one = _growing(TYPICAL_STEPS, TYPICAL_START, TYPICAL_GROWTH, TYPICAL_ANSWER)
    lead = _growing(4 + agents // 20, TYPICAL_START, 20 * TYPICAL_ANSWER, 5 * TYPICAL_ANSWER)
    basis = f"{TYPICAL_STEPS} steps a sub-agent, which differs widely from goal to goal"
    return _sum_up(started, [lead, one.times(agents)], agents, basis, prices)


def _sum_up(
    started: SessionStarted, parts: Sequence[_Calls], agents: int, basis: str, prices: Prices
) -> Estimate:
    steps = sum(part.steps for part in parts)
    scale = BYTES_PER_TOKEN / started.entry.bytes_per_token
    usage = Usage(
        prompt_tokens=round(scale * sum(part.prompt for part in parts)),
        cached_tokens=round(scale * sum(part.cached for part in parts)),
        completion_tokens=round(scale * sum(part.completion for part in parts)),
    )
    money = prices.charge(started.entry.price, usage)
    return Estimate(
        agents=agents,
        live=min(agents, started.agents, started.orchestrator.max_parallel_calls),
        steps=steps,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        nano_usd=money,
        price=started.entry.price,
        basis=basis,
        limits=_limits(started.budget, steps, usage.prompt_tokens + usage.completion_tokens, money),
    )


def _limits(budget: Budget, steps: int, tokens: int, money: int) -> tuple[str, ...]:
    found = []
    if budget.steps < steps:
        found.append(f"The budget of {budget.steps:,} steps is likely to stop it before its end.")
    if budget.tokens is not None and budget.tokens < tokens:
        found.append(f"The budget of {budget.tokens:,} tokens is likely to stop it before its end.")
    if budget.nano_usd is not None and budget.nano_usd < money:
        found.append(f"The budget of USD {usd(budget.nano_usd)} is likely to stop it before its end.")
    return tuple(found)


def _renamer(path: str, hits: int, shared: int, profile: Profile) -> _Calls:
    """search, one replace_word a hit line, the last sentence; a fresh context after so many edits."""
    most = profile.context.restart_after_edits or hits or 1
    called = CALL_TOKENS + _tokens(path)
    answer = called + HIT_TOKENS + MESSAGE_TOKENS
    start = shared + _tokens(path) + MESSAGE_TOKENS
    total, left = _Calls(0, 0, 0, 0), hits
    while True:
        edits = min(left, most)
        left -= edits
        steps = 1 + edits + (left == 0)
        shown = HIT_TOKENS * min(max(hits - 1, 0), 2)
        part = _growing(steps, start, answer, called, warm=shared, jump=shown)
        total = _plus(total, part)
        if left == 0:
            return total


def _orchestrator(goal: str, files: Sequence[str], profile: Profile) -> _Calls:
    """create_subagent; per page a listing and its assignments; status and the last sentence."""
    pages = -(-len(files) // profile.page_size)
    page = -(-len(files) // max(pages, 1))
    path = sum(_tokens(name) for name in files) // max(len(files), 1)
    start = _tokens(_tools(profile)) + 2 * _tokens(goal) + CALL_TOKENS + 3 * MESSAGE_TOKENS
    listed = start + CALL_TOKENS + page * (path + 1)
    assigned = page * (path + CALL_TOKENS)
    handed = listed + assigned + page * (SENTENCE_TOKENS + MESSAGE_TOKENS)
    # A round's listing and assignments; the next listing, or status, is asked after its answers. Then the
    # round is dropped, and only the start is found in the cache.
    steps = 1 + 2 * pages + 2
    prompt = 3 * start + pages * (listed + handed)
    cached = 2 * start + pages * (start + listed)
    completion = CALL_TOKENS * (1 + pages + 1) + pages * assigned + SENTENCE_TOKENS
    return _Calls(steps, prompt, cached, completion)


def _growing(steps: int, start: int, growth: int, answer: int, *, warm: int = 0, jump: int = 0) -> _Calls:
    """A conversation that is only added to: each prompt finds the one before in the cache. `jump` tokens
    come once, with the first tool's answer; `warm` of the first prompt are a sibling's."""
    prompts = [start + step * growth + (jump if step else 0) for step in range(steps)]
    cached = [warm, *prompts[:-1]][:steps]
    return _Calls(steps, sum(prompts), sum(cached), steps * answer)


def _plus(one: _Calls, other: _Calls) -> _Calls:
    return _Calls(
        one.steps + other.steps,
        one.prompt + other.prompt,
        one.cached + other.cached,
        one.completion + other.completion,
    )


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def _tools(profile: Profile) -> str:
    return profile.system_prompt + json.dumps(msgspec.to_builtins(profile.tools), separators=(",", ":"))
