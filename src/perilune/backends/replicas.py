"""Several endpoints of one model as one backend.

A conversation goes to the same endpoint each time, so that it finds its prefix cached: the endpoints are
ordered by a hash of the conversation's beginning and of their own names (rendezvous hashing), so one that
leaves or comes back moves only its own conversations. An endpoint that fails before anything of an answer has
arrived hands the call on to the next one; after that nothing is tried again.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from perilune.accounts.keys import Principal
from perilune.backends.access import Rule, may_serve
from perilune.backends.affinity import in_order
from perilune.backends.base import Backend, ModelEntry
from perilune.backends.breaker import Breaker
from perilune.backends.bursts import Bursts, bursts_of, each
from perilune.backends.members import Duty, Member
from perilune.backends.retries import is_passing, retry_pause
from perilune.chat.messages import Event, Finished, Request
from perilune.errors import (
    BackendAuth,
    BackendDrained,
    BackendError,
    BackendProtocol,
    BackendRateLimited,
    BackendRefused,
    BackendUnreachable,
    ContextTooLong,
    EngineError,
    Forbidden,
    PeriluneError,
)

Begun = tuple[Sequence[Event], Bursts]
"""The first burst of an answer, and the others."""
Failure = BackendError | EngineError
"""Of an endpoint, or of an engine of ours."""

log = logging.getLogger(__name__)

PROBE_EVERY_S = 10.0


@dataclass(frozen=True)
class Replica:
    """One endpoint and what is known of it."""

    name: str
    backend: Backend
    region: str = ""
    vendor: str = ""
    data_classes: tuple[str, ...] = ()
    kind: str = "upstream"
    breaker: Breaker = field(default_factory=Breaker)
    duty: Duty = field(default_factory=Duty)

    def admit(self) -> bool:
        """Whether a call may go there now. Who is let in must tell the breaker how it ended."""
        return not self.duty.drained and self.breaker.admit()

    def failed(self, error: PeriluneError, *, at_once: bool = False) -> None:
        """It gave no answer, or none that is whole."""
        self.duty.error = error.message
        rest_s = self.breaker.failed(at_once=at_once)
        if rest_s:
            log.warning("%s gets no calls for %g s: %s", self.name, rest_s, error.message)

    def overloaded(self, error: BackendRateLimited) -> None:
        self.duty.error = error.message
        self.breaker.released()
        if error.retry_after_s:
            log.warning("%s asks for no calls for %g s: %s", self.name, error.retry_after_s, error.message)
            self.breaker.rest(error.retry_after_s)

    def begun(self) -> None:
        """An answer has begun."""
        self._tell_return()
        self.breaker.begun()

    def answered(self) -> None:
        """A whole answer has come, or a refusal that shows that it is well."""
        self._tell_return()
        self.breaker.succeeded()
        self.duty.error = ""

    def _tell_return(self) -> None:
        if self.breaker.state != "closed":
            log.warning("%s answers again", self.name)


class Replicas:
    """One model, served by any of `replicas` that the rules allow."""

    def __init__(
        self,
        entry: ModelEntry,
        replicas: Sequence[Replica],
        *,
        rules: tuple[Rule, ...] = (),
        retries: int = 3,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`retries`: how often a call that failed everywhere is offered to all of them again."""
        self._entry = entry
        self._all = tuple(replicas)
        self._allowed = () if rules else self._all
        """Where there are rules, none may serve until `serving` has said whom."""
        self._rules = rules
        self._retries = retries
        self._sleep = sleep
        self._chance = chance
        self._probing: asyncio.Task[None] | None = None

    def serving(self, principal: Principal) -> Replicas:
        """The same endpoints, of which only those are used that may serve this caller."""
        view = copy.copy(self)
        view._allowed = tuple(one for one in self._all if may_serve(self._rules, principal, one))
        return view

    def become(self, entry: ModelEntry) -> None:
        """What endpoints told late of the model."""
        self._entry = entry

    def start_probes(self, every_s: float = PROBE_EVERY_S) -> None:
        """Look at every endpoint now and then, until `close`."""
        self._probing = asyncio.create_task(self._probe_forever(every_s))

    async def models(self) -> tuple[ModelEntry, ...]:
        return (self._entry,)

    def members(self) -> list[Member]:
        """All endpoints, whoever asks."""
        return [
            Member(
                name=one.name,
                model=self._entry.id,
                kind=one.kind,
                breaker=one.breaker.state,
                drained=one.duty.drained,
                running=one.duty.running,
                error=one.duty.error,
                region=one.region,
                vendor=one.vendor,
                data_classes=one.data_classes,
            )
            for one in self._all
        ]

    def drain(self, name: str, drained: bool) -> bool:
        """Whether the endpoint of that name, if it is here, takes new calls from now on; whether it is."""
        found = [one for one in self._all if one.name == name]
        for one in found:
            one.duty.drained = drained
        return bool(found)

    def stream(self, request: Request) -> AsyncIterator[Event]:
        return each(self.bursts(request))

    async def bursts(self, request: Request) -> Bursts:
        self._check_access()
        replica, burst, more = await self._begin(request)
        try:
            async with aclosing(more):
                if isinstance(burst[-1], Finished):
                    replica.answered()
                yield burst
                async for burst in more:
                    if isinstance(burst[-1], Finished):
                        replica.answered()
                    yield burst
        except (BackendError, EngineError) as error:
            replica.failed(error)
            raise
        finally:
            replica.duty.running -= 1

    async def ready(self) -> None:
        """Raises the last endpoint's error when none is ready, or when all are drained."""
        on_duty = [one for one in self._all if not one.duty.drained]
        found = await asyncio.gather(*(self._look(one) for one in on_duty))
        errors = [error for error in found if error is not None]
        if len(errors) == len(found):
            raise errors[-1] if errors else self._all_drained()

    async def count_tokens(self, request: Request) -> int | None:
        """The most that any of the endpoints that may serve the call counts, and None where one of them
        cannot. Raises Forbidden too, so that nothing is reserved for a call that no endpoint may serve."""
        self._check_access()
        most = 0
        for replica in self._allowed:
            counted = await replica.backend.count_tokens(request)
            if counted is None:
                return None
            most = max(most, counted)
        return most

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        await asyncio.gather(*(one.backend.close() for one in self._all))

    # ---- one call

    def _check_access(self) -> None:
        if not self._allowed:
            raise Forbidden(
                f"no endpoint of the model {self._entry.id} may serve this key",
                field="model",
                mend="ask the operator which regions, vendors and data classes its project may use",
            )

    async def _begin(self, request: Request) -> tuple[Replica, *Begun]:
        """The first burst of an answer, from whichever endpoint gives one."""
        order, failures = in_order(request, self._allowed), 0
        error: Failure = BackendUnreachable(
            f"every endpoint of {self._entry.id} failed a moment ago", mend="try again soon"
        )
        while True:
            if all(replica.duty.drained for replica in order):
                raise self._all_drained()
            is_final = True
            for replica in order:
                if not replica.admit():
                    is_final = is_final and replica.duty.drained  # else its rest may be over soon
                    continue
                try:
                    return await self._attempt(replica, request)
                except _Elsewhere as elsewhere:
                    error = elsewhere.error
                    is_final = is_final and isinstance(error, BackendAuth)
                    log.info("%s: %s", replica.name, error.message)
            pause = retry_pause(error, failures, self._retries, self._chance())
            if is_final or pause is None:
                raise error
            failures += 1
            await self._sleep(pause)

    def _all_drained(self) -> BackendDrained:
        return BackendDrained(
            f"the operator has drained every endpoint of {self._entry.id}", mend="try again later"
        )

    async def _attempt(self, replica: Replica, request: Request) -> tuple[Replica, *Begun]:
        """Raises _Elsewhere for what another endpoint may do better. Where it returns, the call counts as
        running there."""
        replica.duty.running += 1
        try:
            answer = await self._first(replica, request)
        except BaseException:
            replica.duty.running -= 1
            raise
        return replica, *answer

    async def _first(self, replica: Replica, request: Request) -> Begun:
        bursts = bursts_of(replica.backend, request)
        try:
            first = await anext(bursts)
        except StopAsyncIteration:
            empty = BackendProtocol(f"{replica.name} gave an empty answer")
            replica.failed(empty)
            raise empty from None
        except (BackendRefused, ContextTooLong):  # about the request: the endpoint is well
            replica.answered()
            raise
        except (BackendError, EngineError) as error:
            self._judge(replica, error)
            if isinstance(error, BackendAuth | EngineError) or is_passing(error):
                raise _Elsewhere(error) from error
            raise
        except PeriluneError:
            replica.answered()
            raise
        except BaseException:
            replica.breaker.released()
            raise
        replica.begun()
        return first, bursts

    def _judge(self, replica: Replica, error: Failure) -> None:
        if isinstance(error, BackendRateLimited):
            replica.overloaded(error)
        else:
            replica.failed(error, at_once=isinstance(error, BackendAuth))

    # ---- probes

    async def _probe_forever(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await asyncio.gather(*(self._probe(one) for one in self._all))

    async def _probe(self, replica: Replica) -> None:
        error = await self._look(replica)
        if error is None:
            replica.breaker.wake()
        elif replica.breaker.state == "closed":
            replica.failed(error, at_once=isinstance(error, BackendAuth))

    async def _look(self, replica: Replica) -> Failure | None:
        try:
            await replica.backend.ready()
        except (BackendError, EngineError) as error:
            return error
        return None


class _Elsewhere(Exception):
    """Nothing of an answer has arrived, and another endpoint may do better."""

    def __init__(self, error: Failure) -> None:
        super().__init__(error.message)
        self.error = error
