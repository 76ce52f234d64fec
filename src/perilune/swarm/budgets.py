"""The session's budget: reserved before each model call, settled after it, over the whole tree of agents.

`spent + reserved` never exceeds a ceiling, because a reservation is an upper bound of what the call can
come to. A call that fits only once others are settled waits for them; one that would not fit even then
halts the session, which can be resumed with a larger budget. A reservation is the event `ModelStarted`; it
ends with `ModelAnswered` or `ModelFailed`, or, after a crash, in `state._let_go`.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec

from perilune.agent.loop import AgentState
from perilune.backends.base import ModelEntry
from perilune.chat.messages import Message, Request, Usage
from perilune.errors import BudgetExhausted
from perilune.swarm.events import Budget, ModelStarted
from perilune.swarm.halt import Halt, Halted
from perilune.swarm.recorder import Recorder
from perilune.swarm.state import Held, SessionState

MESSAGE_TOKENS = 16
"""At most what the template adds around one message or call."""
FRAME_TOKENS = 64
"""At most what the template adds around a whole prompt."""

IN_PROCESS = frozenset({"embedded", "scripted"})
"""Backends whose model lives and dies with this process: an answer nobody hears is never billed."""


class Prices(Protocol):
    """What is asked of the price book (`accounts/prices.py`); amounts are nano-USD."""

    def charge(self, price_id: str, usage: Usage) -> int: ...

    def upper_bound(self, price_id: str, prompt_tokens: int, max_tokens: int) -> int: ...


class Purse:
    """Reserves for the agents of one session."""

    def __init__(self, recorder: Recorder, entry: ModelEntry, prices: Prices, halt: Halt) -> None:
        self._recorder = recorder
        self._entry = entry
        self._prices = prices
        self._halt = halt
        self._settled = asyncio.Event()
        halt.wake(self._settled)
        self._tools: dict[str, int] = {}

    async def reserve(self, agent: str, request: Request, state: AgentState) -> None:
        """Take what this call may cost, durably. Raises Halted when the session stops, be it for this."""
        held = self.need(request, state)
        while True:
            self._halt.check()
            short = shortage(self._recorder.state, held)
            if short is not None:
                self._halt.set(short)
                raise Halted
            if fits(self._recorder.state, held):
                break
            self._settled.clear()
            await self._settled.wait()
        await self._recorder.record(
            ModelStarted(
                agent=agent,
                tokens=held.tokens,
                nano_usd=held.nano_usd,
                billable=self._entry.backend not in IN_PROCESS,
            )
        )

    def settled(self) -> None:
        """A reservation ended: those who wait look again."""
        self._settled.set()

    def need(self, request: Request, state: AgentState) -> Held:
        """An upper bound of the call. The last call of the same context told how long its prompt and answer
        were; what came since, and a first prompt, counts one token a byte, which no tokenizer exceeds."""
        answer = min(request.max_tokens or self._entry.max_output_tokens, self._entry.max_output_tokens)
        prompt = self._tools_bytes(state, request) + FRAME_TOKENS + _bytes(request.messages)
        if state.context_tokens and state.turns:
            fresh = _bytes(state.turns[-1].messages())
            prompt = min(prompt, state.context_tokens + FRAME_TOKENS + fresh)
        prompt = min(prompt, self._entry.context_length)
        cost = self._prices.upper_bound(self._entry.price, prompt, answer)
        return Held(steps=1, tokens=prompt + answer, nano_usd=cost)

    def charge(self, usage: Usage) -> int:
        return self._prices.charge(self._entry.price, usage)

    def _tools_bytes(self, state: AgentState, request: Request) -> int:
        name = state.profile.name
        if name not in self._tools:
            self._tools[name] = len(msgspec.json.encode(request.tools)) + MESSAGE_TOKENS * len(request.tools)
        return self._tools[name]


def fits(state: SessionState, held: Held) -> bool:
    return not _over(state.budget, _spent(state).plus(state.reserved).plus(held))


def shortage(state: SessionState, held: Held) -> BudgetExhausted | None:
    """Why this call cannot be made even when nothing else is under way; None when it can."""
    over = _over(state.budget, _spent(state).plus(held))
    if not over:
        return None
    limit = getattr(state.budget, over)
    used = getattr(_spent(state), over)
    return BudgetExhausted(
        f"the next call may exceed the budget of {_shown(over, limit)}; {_shown(over, used)} used",
        field=over,
        mend="resume with a larger budget",
    )


def _spent(state: SessionState) -> Held:
    spent = state.spent
    return Held(steps=spent.steps, tokens=spent.tokens, nano_usd=spent.nano_usd)


def _over(budget: Budget, total: Held) -> str:
    """The first ceiling that the total exceeds; empty when none."""
    for field in ("steps", "tokens", "nano_usd"):
        limit = getattr(budget, field)
        if limit is not None and getattr(total, field) > limit:
            return field
    return ""


def _shown(field: str, amount: int) -> str:
    return f"${amount / 1e9:.4f}" if field == "nano_usd" else f"{amount} {field}"


def _bytes(messages: tuple[Message, ...]) -> int:
    total = 0
    for message in messages:
        total += MESSAGE_TOKENS + _text_bytes(message)
        for call in message.tool_calls:
            total += MESSAGE_TOKENS + len(call.name) + len(call.id) + len(call.arguments.encode())
    return total


def _text_bytes(message: Message) -> int:
    text = message.content if isinstance(message.content, str) else ""
    return len(text.encode()) + len((message.reasoning or "").encode())
