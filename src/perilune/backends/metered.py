"""The one egress: every model call of API and swarm reserves, calls and settles here.

    quote     what the call can cost at most
    reserve   the open row is on disk before the model is asked
    stream    the inner backend's events, as they come
    settle    the charge is on disk before `Finished` leaves; also when the caller goes away, the model
              fails or the stream is cut: then what was produced is settled, marked as an estimate

Only a killed process leaves a row open; the next start closes it (`accounts/ledger.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import msgspec

from perilune.accounts.accounts import Accounts
from perilune.accounts.keys import Principal
from perilune.accounts.request_ids import new_request_id
from perilune.accounts.rows import Charge, Outcome, Reservation
from perilune.backends.base import Backend, ModelEntry
from perilune.backends.bursts import Bursts, bursts_of, each
from perilune.backends.quotes import Quote, guess_prompt, tokens_of
from perilune.backends.router import Router, find_entry
from perilune.chat.messages import (
    Assembler,
    Completion,
    Event,
    Finished,
    Request,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from perilune.chat.template import refuse_surrogates
from perilune.errors import BackendInterrupted

UNCOUNTED = 64
"""Events of an answer that are kept until their size is taken together."""

LEAST_ANSWER = 256
"""An answer whose length the request leaves open is cut to what budgets and balance cover, but never below
this: then the call is refused. Documented in docs/accounts.md."""
MOST_TOKENS = 1 << 31
"""Of any one call; also keeps every charge within the ledger's integers."""


class MeteredBackend:
    """`inner` on the account of one principal."""

    def __init__(
        self,
        inner: Backend,
        accounts: Accounts,
        principal: Principal,
        *,
        on_charge: Callable[[Charge], None] | None = None,
        on_quote: Callable[[Quote], None] | None = None,
    ) -> None:
        """`on_charge` hears of every settled call; `on_quote` what each call can come to, before anything is
        reserved, and may refuse it by raising. Light to make: one per request is fine."""
        self._inner = inner.serving(principal) if isinstance(inner, Router) else inner
        self._accounts = accounts
        self._principal = principal
        self._on_charge = on_charge
        self._on_quote = on_quote

    async def models(self) -> tuple[ModelEntry, ...]:
        return await self._inner.models()

    def stream(self, request: Request) -> AsyncIterator[Event]:
        return self.call(request)

    def call(
        self,
        request: Request,
        *,
        request_id: str | None = None,
        quote: Quote | None = None,
        whole: bool = False,
    ) -> MeteredCall:
        """One call, to be iterated over; afterwards its `charge` is known.

        `request_id` must never have been used before; left out, a new one is made. A `quote` made for this
        request spares counting again. `whole`: nothing of the answer goes to who pays before its end, so one
        that fails costs nothing. Raises, while iterated: LimitReached, InsufficientBalance, NotFound,
        StoreError, and what the inner backend raises."""
        return MeteredCall(self, request, request_id or new_request_id(), quote, whole=whole)

    async def complete(
        self, request: Request, *, request_id: str | None = None, quote: Quote | None = None
    ) -> tuple[Completion, Charge]:
        """Run a call to its end: the answer and what it cost."""
        call, assembler = self.call(request, request_id=request_id, quote=quote), Assembler()
        async with aclosing(call):
            async for event in call:
                assembler.add(event)
        assert call.charge is not None, "a call that ended well is settled"
        return assembler.completion(), call.charge

    async def quote(self, request: Request) -> Quote:
        """The most that this request can cost. Raises NotFound for an unknown model, InputError for a text
        that is none."""
        inner = self._inner
        try:
            if isinstance(inner, Router):
                entry, backend, routed = await inner.route(request)
            else:
                entry, backend, routed = find_entry(await inner.models(), request.model), inner, request
            counted = await backend.count_tokens(routed)
            bound, estimate = (counted, counted) if counted is not None else guess_prompt(request, entry)
        except UnicodeEncodeError:
            refuse_surrogates(request)  # which says where it stands
            raise
        sure = counted is not None or request.max_tokens is None
        room = entry.context_length - (estimate if sure else 0)
        most = max(1, min(request.max_tokens or entry.max_output_tokens, room))
        least = min(LEAST_ANSWER, most) if request.max_tokens is None else None
        price = self._accounts.prices
        most_nano_usd = price.upper_bound(entry.price, bound, most)
        return Quote(entry, backend, routed, bound, estimate, most, most_nano_usd, least)

    async def ready(self) -> None:
        await self._inner.ready()

    async def count_tokens(self, request: Request) -> int | None:
        return await self._inner.count_tokens(request)

    async def close(self) -> None:
        await self._inner.close()

    def _reserve(self, request_id: str, quote: Quote) -> Coroutine[Any, Any, Reservation]:
        return self._accounts.reserve(
            self._principal,
            request_id=request_id,
            model=quote.entry.id,
            price=quote.entry.price,
            prompt_bound=quote.prompt_bound,
            prompt_estimate=quote.prompt_estimate,
            max_tokens=quote.max_tokens,
            least_tokens=quote.least_tokens,
        )

    async def _settle(
        self, reservation: Reservation, usage: Usage, outcome: Outcome, estimated: bool
    ) -> Charge:
        charge = await self._accounts.settle(
            reservation,
            usage,
            reasoning=usage.reasoning_tokens,
            outcome=outcome,
            estimated=estimated,
        )
        if self._on_charge is not None:
            self._on_charge(charge)
        return charge


class MeteredCall:
    """The events of one metered call, and what it came to."""

    def __init__(
        self,
        backend: MeteredBackend,
        request: Request,
        request_id: str,
        quote: Quote | None,
        *,
        whole: bool = False,
    ) -> None:
        self.request_id = request_id
        self.quote = quote
        """Known from the first event on."""
        self.charge: Charge | None = None
        """Known when `Finished` arrives, and after a failed or abandoned call too."""
        self.outcome_if_left: Outcome = "aborted"
        """What it is to be called when it is closed before its end: `failed` where that is for an error."""
        self._backend = backend
        self._request = request
        self._whole = whole
        self._pieces = self._bytes = 0
        """Of text, thinking and calls that arrived, but for the last events."""
        self._last: list[Event] = []
        """The last events that arrived; none only before any did. They are counted many at a time, or where
        their size is asked for: most answers that are not streamed are few, and tell their usage."""
        self.bursts: Bursts = self._run()
        """The same events, together that came together. Use one or the other."""
        self._one_by_one: AsyncGenerator[Event, None] | None = None

    @property
    def _events(self) -> AsyncGenerator[Event, None]:
        if self._one_by_one is None:
            self._one_by_one = each(self.bursts)
        return self._one_by_one

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events

    def __anext__(self) -> Coroutine[Any, Any, Event]:
        return self._events.__anext__()

    async def aclose(self) -> None:
        """Abort the call and settle what was produced. Nothing to do after its end."""
        if self._one_by_one is not None:
            await self._one_by_one.aclose()
        await self.bursts.aclose()

    async def _run(self) -> Bursts:
        quote = self.quote = self.quote or await self._backend.quote(self._request)
        if self._backend._on_quote is not None:
            self._backend._on_quote(quote)
        reservation = await self._backend._reserve(self.request_id, quote)
        outcome: Outcome = "aborted"
        try:
            request = msgspec.structs.replace(quote.request, max_tokens=reservation.max_tokens)
            bursts = bursts_of(quote.backend, request)
            try:
                async for burst in bursts:
                    if len(self._last) > UNCOUNTED:
                        self._take_sizes()
                    self._last += burst
                    last = burst[-1]
                    if isinstance(last, Finished):
                        if len(burst) > 1:
                            yield burst[:-1]
                        burst = (await self._settle_finished(reservation, quote, last),)
                    yield burst
            finally:
                await bursts.aclose()
            if self.charge is None:
                raise BackendInterrupted("the model's stream ended before it was complete", mend="try again")
        except (GeneratorExit, asyncio.CancelledError):
            outcome = self.outcome_if_left
            raise
        except BaseException:
            outcome = "failed"
            raise
        finally:
            if self.charge is None:
                await self._settle_unfinished(reservation, quote, outcome)

    async def _settle_finished(self, reservation: Reservation, quote: Quote, event: Finished) -> Finished:
        """No prompt is empty: counts that say so, or that no model can reach, are not taken as counts."""
        told = 0 < event.usage.prompt_tokens <= MOST_TOKENS
        told = told and 0 <= event.usage.completion_tokens <= MOST_TOKENS
        usage = event.usage if told else self._estimate(reservation, quote)
        self.charge = await self._backend._settle(reservation, usage, "finished", not told)
        return event if told else Finished(event.reason, usage)

    async def _settle_unfinished(self, reservation: Reservation, quote: Quote, outcome: Outcome) -> None:
        """A call that failed before anything arrived costs nothing, nor does one whose answer was to go out
        whole. Otherwise the prompt was read, and what arrived was made; how much of the prompt was cached
        nobody told, so none is assumed."""
        if outcome == "failed" and (self._whole or not self._last):
            self.charge = await self._backend._settle(reservation, Usage(), outcome, False)
            return
        self.charge = await self._backend._settle(
            reservation, self._estimate(reservation, quote), outcome, True
        )

    def _estimate(self, reservation: Reservation, quote: Quote) -> Usage:
        """No engine sends less than a token in one piece; where a piece holds many, its bytes tell more. What
        comes by letters, or is longer than was asked for, costs no more than was reserved."""
        self._take_sizes()
        made = min(max(self._pieces, tokens_of(self._bytes)), reservation.max_tokens)
        return Usage(prompt_tokens=quote.prompt_estimate, completion_tokens=made)

    def _take_sizes(self) -> None:
        for event in self._last:
            match event:
                case TextDelta(text=text) | ThinkingDelta(text=text) | ToolCallDelta(arguments=text):
                    self._pieces += 1
                    self._bytes += len(text.encode())
                case ToolCallStarted():
                    self._bytes += len(event.name.encode())
                case Finished():
                    pass
        self._last = []
